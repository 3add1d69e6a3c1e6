"""The queue of jobs: how a worker gets one, keeps it, and says how it ended.

A claim raises the job's `lease_epoch`; every later write of that attempt names its epoch. A write
that finds no such row raises `LeaseLostError`: the job was cancelled or paused, or belongs to another
worker, and the attempt must stop and publish nothing. Time is the database's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, delete, exists, func, literal, or_, select, update
from sqlalchemy.orm import Session, aliased

from app.auth.models import Project
from app.database import database_now
from app.fine_tuning.models import SPEC_VERSION, Checkpoint, Event, FineTuningJob, Worker

MAX_ATTEMPTS = 3


class LeaseLostError(Exception):
    """The attempt no longer owns its job; `status` is the job's now."""

    def __init__(self, job_id: str, epoch: int, status: str) -> None:
        super().__init__(f"{job_id}, epoch {epoch}: the job is {status}, or another worker's")
        self.status = status


def claim_next(
    session: Session,
    worker_id: str,
    base_models: Sequence[str],
    lease_seconds: float,
    *,
    running_limit: int = 0,
    spec_version: int = SPEC_VERSION,
) -> FineTuningJob | None:
    """Leases the next job on one of these bases, in one statement; None when there is none to take.

    Projects take turns: first the one with the fewest running jobs, then the one whose last start is
    longest ago. Within a project: priority, then age. `running_limit` bounds a project's running jobs
    (0: no bound).
    """
    claimable = (
        FineTuningJob.status == "queued",
        FineTuningJob.not_before <= database_now(),
        FineTuningJob.model.in_(base_models),
        FineTuningJob.spec_version <= spec_version,
    )
    running = aliased(FineTuningJob)
    running_jobs = (
        select(func.count())
        .where(running.project_id == Project.id, running.status == "running")
        .correlate(Project)
        .scalar_subquery()
    )
    started = aliased(FineTuningJob)
    last_start = (
        select(func.coalesce(func.max(started.started_at), 0.0))
        .where(started.project_id == Project.id)
        .correlate(Project)
        .scalar_subquery()
    )
    has_work = exists().where(FineTuningJob.project_id == Project.id, *claimable).correlate(Project)
    turns = select(Project.id).where(has_work)
    if running_limit:
        turns = turns.where(running_jobs < running_limit)
    whose_turn = turns.order_by(running_jobs, last_start, Project.id).limit(1).scalar_subquery()
    next_job = (
        select(FineTuningJob.id)
        .where(FineTuningJob.project_id == whose_turn, *claimable)
        .order_by(FineTuningJob.rank, FineTuningJob.created_at, FineTuningJob.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    claim = (
        update(FineTuningJob)
        .where(FineTuningJob.id == next_job, FineTuningJob.status == "queued")
        .values(
            status="running",
            lease_epoch=FineTuningJob.lease_epoch + 1,
            lease_until=database_now() + lease_seconds,
            worker_id=worker_id,
            started_at=database_now(),
        )
        .returning(FineTuningJob)
        .execution_options(populate_existing=True)
    )
    job = session.scalar(claim)
    if job is not None:
        add_event(
            session, job.id, "Fine-tuning job started" if job.lease_epoch == 1 else "Fine-tuning job resumed"
        )
    return job


def reclaim_expired(session: Session, retry_seconds: float) -> int:
    """Takes jobs from workers whose lease has passed; returns how many. Any worker may do it at any time."""
    lapsed = session.scalars(
        select(FineTuningJob)
        .where(FineTuningJob.status == "running", FineTuningJob.lease_until < database_now())
        .with_for_update(skip_locked=True)
    ).all()
    for job in lapsed:
        reason = "Its worker stopped reporting"
        retry(session, job.id, job.lease_epoch, reason, code="worker_lost", retry_seconds=retry_seconds)
    return len(lapsed)


def renew_lease(session: Session, job_id: str, epoch: int, lease_seconds: float) -> None:
    """The heartbeat.

    Raises:
        LeaseLostError: the attempt no longer owns its job.
    """
    _write(session, job_id, epoch, lease_until=database_now() + lease_seconds)


def record_event(
    session: Session,
    job_id: str,
    epoch: int,
    message: str,
    *,
    level: str = "info",
) -> None:
    """A line in the job's log.

    Raises:
        LeaseLostError: the attempt no longer owns its job.
    """
    _write(session, job_id, epoch, lease_epoch=epoch)
    add_event(session, job_id, message, level=level)


def record_step(
    session: Session,
    job_id: str,
    epoch: int,
    step: int,
    message: str,
    *,
    data: dict[str, Any],
    estimated_finish: float,
) -> None:
    """A step's metrics, and when the job is now expected to end.

    Raises:
        LeaseLostError: the attempt no longer owns its job.
    """
    _write(session, job_id, epoch, recorded_step=step, estimated_finish=estimated_finish)
    add_event(session, job_id, message, data=data)


def record_checkpoint(
    session: Session, job_id: str, epoch: int, *, step: int, name: str, metrics: dict[str, Any]
) -> None:
    """A checkpoint that is complete in storage; one that an earlier attempt recorded is left as it is.

    Raises:
        LeaseLostError: the attempt no longer owns its job.
    """
    _write(session, job_id, epoch, lease_epoch=epoch)
    known = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step_number == step)
    if session.scalar(known) is None:
        session.add(
            Checkpoint(job_id=job_id, step_number=step, fine_tuned_model_checkpoint=name, metrics=metrics)
        )


def recorded_metrics(session: Session, job_id: str) -> Sequence[dict[str, Any]]:
    """The numbers of every step in the job's log, in order."""
    steps = select(Event.data).where(Event.job_id == job_id, Event.type == "metrics").order_by(Event.seq)
    return [data for data in session.scalars(steps) if data is not None]


def succeed(
    session: Session,
    job_id: str,
    epoch: int,
    *,
    fine_tuned_model: str,
    trained_tokens: int,
    result_file_id: str,
) -> None:
    """The job's final state; its adapter's row must be written in the same transaction.

    Raises:
        LeaseLostError: the attempt no longer owns its job.
    """
    _write(
        session,
        job_id,
        epoch,
        status="succeeded",
        finished_at=time.time(),
        lease_until=None,
        fine_tuned_model=fine_tuned_model,
        trained_tokens=trained_tokens,
        result_file_id=result_file_id,
    )
    add_event(session, job_id, f"New fine-tuned model created: {fine_tuned_model}")
    add_event(session, job_id, "The job has successfully completed")


def fail(session: Session, job_id: str, epoch: int, *, code: str, message: str, param: str | None) -> None:
    """The job's final state, with the reason.

    Raises:
        LeaseLostError: the attempt no longer owns its job.
    """
    error = {"code": code, "message": message, "param": param}
    _write(session, job_id, epoch, status="failed", finished_at=time.time(), lease_until=None, error=error)
    add_event(session, job_id, f"The job failed: {message}", level="error")


def retry(session: Session, job_id: str, epoch: int, reason: str, *, code: str, retry_seconds: float) -> None:
    """Ends an attempt that died: the job waits for the next one, or fails after the last.

    The wait is `retry_seconds`, then twice as long.

    Raises:
        LeaseLostError: the attempt no longer owns its job.
    """
    failed = session.scalar(select(FineTuningJob.attempts_failed).where(FineTuningJob.id == job_id))
    died = (failed or 0) + 1
    if died >= MAX_ATTEMPTS:
        message = f"{reason}, in each of {MAX_ATTEMPTS} attempts; the worker's log has the details."
        fail(session, job_id, epoch, code=code, message=message, param=None)
        return
    pause = retry_seconds * 2 ** (died - 1)
    _back_to_queue(session, job_id, epoch, attempts_failed=died, not_before=database_now() + pause)
    add_event(
        session, job_id, f"{reason}; attempt {died + 1} of {MAX_ATTEMPTS} in {pause:.0f} s", level="warn"
    )


def release(session: Session, job_id: str, epoch: int) -> None:
    """Gives an unfinished job back to the queue; no attempt is counted.

    Raises:
        LeaseLostError: the attempt no longer owns its job.
    """
    _back_to_queue(session, job_id, epoch)
    add_event(session, job_id, "The worker stopped; the job waits for another", level="warn")


def pause_for_room(session: Session, job_id: str, epoch: int, reason: str) -> None:
    """Pauses a job that cannot be saved; `resume_with_room` lets it go on.

    Raises:
        LeaseLostError: the attempt no longer owns its job.
    """
    _write(
        session, job_id, epoch, status="paused", pause_reason="storage_full", lease_until=None, worker_id=None
    )
    add_event(session, job_id, f"Paused until there is room: {reason}", level="warn")


def resume_with_room(session: Session) -> int:
    """Queues the jobs that were paused for want of room; returns how many."""
    waiting = session.scalars(
        select(FineTuningJob)
        .where(FineTuningJob.status == "paused", FineTuningJob.pause_reason == "storage_full")
        .with_for_update(skip_locked=True)
    ).all()
    for job in waiting:
        job.status, job.pause_reason = "queued", None
        add_event(session, job.id, "There is room again: the job waits for a worker")
    return len(waiting)


def position(session: Session, job: FineTuningJob) -> int:
    """How many waiting jobs are claimed before this one, were no more to come: projects take turns."""
    in_project = (
        func.row_number()
        .over(
            partition_by=FineTuningJob.project_id,
            order_by=(FineTuningJob.rank, FineTuningJob.created_at, FineTuningJob.id),
        )
        .label("turn")
    )
    line = select(FineTuningJob.id, FineTuningJob.created_at, in_project).where(
        FineTuningJob.status == "queued"
    )
    waiting = line.subquery()
    mine = select(waiting.c.turn).where(waiting.c.id == job.id).scalar_subquery()
    ahead = or_(
        waiting.c.turn < mine, and_(waiting.c.turn == mine, waiting.c.created_at < literal(job.created_at))
    )
    return session.scalar(select(func.count()).select_from(waiting).where(ahead)) or 0


def add_event(
    session: Session, job_id: str, message: str, *, level: str = "info", data: dict[str, Any] | None = None
) -> None:
    """A line in the job's log; with data, a line of metrics."""
    kind = "message" if data is None else "metrics"
    session.add(Event(job_id=job_id, message=message, level=level, type=kind, data=data))


def report_worker(session: Session, worker: Worker) -> None:
    """Writes the worker's row, with the database's time as its heartbeat."""
    session.merge(worker).heartbeat_at = database_now()  # pyright: ignore[reportAttributeAccessIssue]


def remove_worker(session: Session, worker_id: str) -> None:
    """Takes away the row of a worker that ends."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def live_workers(session: Session, within_seconds: float) -> list[Worker]:
    """Workers that reported themselves lately."""
    recent = Worker.heartbeat_at > database_now() - within_seconds
    return list(session.scalars(select(Worker).where(recent).order_by(Worker.started_at)))


def _back_to_queue(session: Session, job_id: str, epoch: int, **values: Any) -> None:
    _write(
        session,
        job_id,
        epoch,
        status="queued",
        lease_until=None,
        worker_id=None,
        estimated_finish=None,
        **values,
    )


def _write(session: Session, job_id: str, epoch: int, **values: Any) -> None:
    """The one fenced write."""
    fence = (
        update(FineTuningJob)
        .where(
            FineTuningJob.id == job_id,
            FineTuningJob.lease_epoch == epoch,
            FineTuningJob.status == "running",
        )
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    if session.execute(fence).rowcount != 1:  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        status = session.scalar(select(FineTuningJob.status).where(FineTuningJob.id == job_id))
        raise LeaseLostError(job_id, epoch, status or "gone")
