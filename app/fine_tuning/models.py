"""Fine-tuning jobs, their events and checkpoints, and the workers that run them."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text, literal_column, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.core.database import Base, new_id
from app.files.models import File

ALLOWED_MOVES: dict[str, frozenset[str]] = {
    "validating_files": frozenset({"queued", "failed", "cancelled"}),
    "queued": frozenset({"running", "paused", "failed", "cancelled"}),
    "running": frozenset({"queued", "paused", "succeeded", "failed", "cancelled"}),
    "paused": frozenset({"queued", "failed", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""The only changes of status that a job may make; a status without any is final."""

SPEC_VERSION = 3
"""The newest version of a job that this version's workers can train."""
EXTENDED_SPEC_VERSION = 2
"""The version of jobs that continue from a fine-tuned model or train on a part of their training file, which
workers of version 1 would train wrongly."""

FINAL_STATUSES = frozenset(status for status, moves in ALLOWED_MOVES.items() if not moves)


IS_MESSAGE = literal_column("'message'", String)
"""The type of a line without metrics: no parameter, which the partial index could not be used for."""


class FineTuningJob(Base):
    """One request to train. `lease_epoch` counts its attempts and fences their writes."""

    __tablename__ = "fine_tuning_jobs"
    __table_args__ = (
        Index("ix_jobs_project_created", "project_id", "created_at", "id"),
        Index(
            "ix_jobs_queued",
            "project_id",
            "rank",
            "created_at",
            "id",
            sqlite_where=text("status = 'queued'"),
            postgresql_where=text("status = 'queued'"),
        ),
        Index(
            "ix_jobs_queued_models",
            "model",
            "project_id",
            "rank",
            "created_at",
            "id",
            sqlite_where=text("status = 'queued'"),
            postgresql_where=text("status = 'queued'"),
        ),
        Index("ix_jobs_status_project", "status", "project_id"),
        Index("ix_jobs_project_started", "project_id", "started_at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("ftjob-"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    status: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(255))
    """The base model's name."""
    parent: Mapped[str | None] = mapped_column(String(255))
    """The adapter that training continues from, whose row stays for ever; None for a fresh adapter."""
    training_file_id: Mapped[str] = mapped_column(ForeignKey("files.id"))
    validation_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    rest_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    """The training file without its hold-out; None unless a hold-out was asked for."""
    validation_split: Mapped[dict[str, Any] | None]
    """The hold-out's `share` and `seed`, the `examples` left to train on, and those `held_out`."""
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(BigInteger)
    method: Mapped[str] = mapped_column(String(32))
    hyperparameters: Mapped[dict[str, Any]]
    """The resolved hyperparameters, as `app.fine_tuning.methods.hyperparameters.Hyperparameters`."""
    gpus: Mapped[int] = mapped_column(default=1, server_default="1")
    """The GPUs that it needs, as in `hyperparameters`: a column, because claims compare it."""
    job_metadata: Mapped[dict[str, Any] | None]
    integrations: Mapped[list[dict[str, Any]] | None]
    """What was requested, as `app.fine_tuning.integrations.Integration`."""
    rank: Mapped[int] = mapped_column(default=0, server_default="0")
    """The negated priority, for the index: of a project's waiting jobs, the lowest rank goes first."""
    spec_version: Mapped[int] = mapped_column(default=1, server_default="1")
    """The version that a worker must support to train the job; an older worker leaves it in the queue."""

    created_at: Mapped[float] = mapped_column(default=time.time)
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    estimated_finish: Mapped[float | None]
    expected_seconds: Mapped[float | None]
    """What its first attempt was expected to take, before its first step; None if no job of the base had been
    measured then."""
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    fine_tuned_model: Mapped[str | None] = mapped_column(String(255))
    result_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    error: Mapped[dict[str, Any] | None]

    lease_epoch: Mapped[int] = mapped_column(Integer, default=0)
    """The number of claims; it fences the writes of earlier claimants."""
    attempts_failed: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """Attempts in a row that died without a newer checkpoint, while their worker lived on; pauses, drains and
    cancellations do not count."""
    workers_lost: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """Attempts in a row that died without a newer checkpoint, and their worker with them."""
    deaths: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """All attempts that died."""
    saved_step: Mapped[int | None]
    """The step of the newest checkpoint that an attempt is known to have saved."""
    saved_epoch: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """The attempt that saved it; 0 if none has."""
    not_before: Mapped[float] = mapped_column(default=0.0, server_default="0")
    """The earliest time, by the database's clock, at which a queued job is claimed."""
    recorded_step: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """The last step in the job's log; a resumed attempt records no step twice."""
    pause_reason: Mapped[str | None] = mapped_column(String(32))
    """`requested`, or `storage_full`: such a job resumes by itself once there is room."""
    lease_until: Mapped[float | None]
    """The end of its lease by the database's clock; after that, any worker may claim a running job."""
    worker_id: Mapped[str | None] = mapped_column(String(64))
    traceparent: Mapped[str | None] = mapped_column(String(55))
    """The trace that it was created in, which its attempts go on with; None if nothing was recorded."""

    training_file: Mapped[File] = relationship(foreign_keys=training_file_id, viewonly=True)
    validation_file: Mapped[File | None] = relationship(foreign_keys=validation_file_id, viewonly=True)
    """Both rows are always there: a file that is deleted keeps its row."""

    @property
    def learnt_file_id(self) -> str:
        """The id of the file whose examples the job trains on."""
        return self.rest_file_id or self.training_file_id


class Event(Base):
    """A line of a job's log; `seq` is the order in which the lines were written."""

    __tablename__ = "fine_tuning_events"
    __table_args__ = (
        Index("ix_events_job_seq", "job_id", "seq"),
        Index(
            "ix_events_messages",
            "job_id",
            "seq",
            sqlite_where=text("type = 'message'"),
            postgresql_where=text("type = 'message'"),
        ),
    )

    seq: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    id: Mapped[str] = mapped_column(String(64), unique=True, default=lambda: new_id("ftevent-"))
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"))
    created_at: Mapped[float] = mapped_column(default=time.time)
    level: Mapped[str] = mapped_column(String(16))
    type: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None]


class TrackedRun(Base):
    """The run in a tracker (MLflow, trackio, W&B) that shows a job's metrics, and how much of it was sent.

    It is leased while a process sends to it.
    """

    __tablename__ = "tracked_runs"
    __table_args__ = (
        Index(
            "ix_tracked_runs_open",
            "not_before",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )

    job_id: Mapped[str] = mapped_column(
        ForeignKey("fine_tuning_jobs.id", ondelete="CASCADE"), primary_key=True
    )
    tracker: Mapped[str] = mapped_column(String(16))
    project: Mapped[str] = mapped_column(String(128))
    """The tracker's project; in MLflow, the experiment."""
    entity: Mapped[str | None] = mapped_column(String(128))
    name: Mapped[str] = mapped_column(String(128))
    tags: Mapped[list[str]]
    is_announced: Mapped[bool] = mapped_column(default=False)
    """Whether the job's log says where its run is."""
    sent_step: Mapped[int] = mapped_column(default=0)
    """The last step whose metrics were sent."""
    ended_at: Mapped[float | None]
    """The time at which all had been sent, or was given up."""

    failures: Mapped[int] = mapped_column(default=0)
    """The attempts in a row that have failed."""
    is_warned: Mapped[bool] = mapped_column(default=False)
    """Whether the job's log says that an attempt has failed."""
    not_before: Mapped[float] = mapped_column(default=0.0)
    """The earliest time of the next attempt, by the database's clock."""
    lease_epoch: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[float | None]
    """The end of the lease by the database's clock; None while no process sends to the run."""


class Checkpoint(Base):
    """A step of a job that was saved and can be served under its own name."""

    __tablename__ = "fine_tuning_checkpoints"
    __table_args__ = (Index("ix_checkpoints_job_step", "job_id", "step_number", unique=True),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("ftckpt_"))
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"))
    step_number: Mapped[int]
    fine_tuned_model_checkpoint: Mapped[str] = mapped_column(String(255), unique=True)
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(default=time.time)


class Attempt(Base):
    """An attempt at a job that has ended, and the time for which a worker held it."""

    __tablename__ = "fine_tuning_attempts"
    __table_args__ = (Index("ix_attempts_project_ended", "project_id", "ended_at"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    gpus: Mapped[int]
    started_at: Mapped[float]
    ended_at: Mapped[float]
    """By the database's clock, as `started_at`; the end of its lease if its worker died."""


class Worker(Base):
    """A process that claims jobs; alive while its heartbeat is recent."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("worker_"))
    hostname: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    device: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(32))
    memory_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Resident memory of the worker and its trainer."""
    device_memory_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """The device's total memory; 0 if unknown."""
    gpus: Mapped[int] = mapped_column(default=1, server_default="1")
    """The most GPUs that a job can have here; on a CPU, the most processes."""
    job_id: Mapped[str | None] = mapped_column(String(64))
    started_at: Mapped[float]
    heartbeat_at: Mapped[float] = mapped_column(default=0.0)
    """The time of the last heartbeat, by the database's clock."""


class TrainingSpeed(Base):
    """What a job took on its device, from its first step to its end. Estimates are made from these rows."""

    __tablename__ = "training_speeds"
    __table_args__ = (Index("ix_training_speeds_base_measured", "base_model", "measured_at"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"), primary_key=True)
    base_model: Mapped[str] = mapped_column(String(255))
    device: Mapped[str] = mapped_column(String(64))
    worker_id: Mapped[str] = mapped_column(String(64))
    measured_at: Mapped[float] = mapped_column(default=time.time)
    lora_rank: Mapped[int]
    value_bytes: Mapped[int]
    """The size of a weight or an activation in the type that the device computes in."""
    tokens: Mapped[int] = mapped_column(BigInteger)
    """Trained tokens, as the user counts them."""
    seconds: Mapped[float]
    startup_seconds: Mapped[float]
    """Time from the claim to the first step: starting the trainer, loading the model and reading files."""
    training: Mapped[dict[str, Any]]
    """The work that was done in `seconds`, as `packing.Work`."""
    evaluation: Mapped[dict[str, Any]] = mapped_column("looking")
    """The work of evaluating validation examples in the same time, as `packing.Work`."""
    largest: Mapped[dict[str, Any]]
    """The largest micro-batch, as `packing.Work`; it decided the peak."""
    resident_memory_bytes: Mapped[int] = mapped_column(BigInteger)
    """The trainer's memory before any step, with the base model in use."""
    peak_memory_bytes: Mapped[int] = mapped_column(BigInteger)
