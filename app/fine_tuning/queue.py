"""The queue of jobs: how a worker gets one, keeps it, and says how it ended.

A claim raises the job's `lease_epoch`; every later write of that attempt names its epoch. A write
that finds no such row raises `LeaseLostError`: the job was cancelled, or belongs to another worker,
and the attempt must stop and publish nothing. Time is the database's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.orm import Session

from app.database import database_now
from app.fine_tuning.models import Checkpoint, Event, FineTuningJob, Worker


class LeaseLostError(Exception):
    """The attempt no longer owns its job."""


def claim_next(
    session: Session, worker_id: str, base_models: Sequence[str], lease_seconds: float
) -> FineTuningJob | None:
    """Leases the oldest job on one of these bases that waits, or whose lease has passed."""
    waiting = or_(
        FineTuningJob.status == "queued",
        and_(FineTuningJob.status == "running", FineTuningJob.lease_until < database_now()),
    )
    oldest = (
        select(FineTuningJob.id)
        .where(waiting, FineTuningJob.model.in_(base_models))
        .order_by(FineTuningJob.created_at, FineTuningJob.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    job = session.scalar(
        update(FineTuningJob)
        .where(FineTuningJob.id == oldest)
        .values(
            status="running",
            lease_epoch=FineTuningJob.lease_epoch + 1,
            lease_until=database_now() + lease_seconds,
            worker_id=worker_id,
            started_at=time.time(),
        )
        .returning(FineTuningJob)
        .execution_options(populate_existing=True)
    )
    if job is not None:
        add_event(
            session,
            job.id,
            "Fine-tuning job started" if job.lease_epoch == 1 else "Fine-tuning job restarted",
        )
    return job


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
    data: dict[str, Any] | None = None,
    estimated_finish: float | None = None,
) -> None:
    """A line in the job's log, and when the job is now expected to end.

    Raises:
        LeaseLostError: the attempt no longer owns its job.
    """
    changes: dict[str, Any] = {} if estimated_finish is None else {"estimated_finish": estimated_finish}
    _write(session, job_id, epoch, **(changes or {"lease_epoch": epoch}))
    add_event(session, job_id, message, level=level, data=data)


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


def release(session: Session, job_id: str, epoch: int) -> None:
    """Gives an unfinished job back to the queue.

    Raises:
        LeaseLostError: the attempt no longer owns its job.
    """
    _write(session, job_id, epoch, status="queued", lease_until=None, worker_id=None, estimated_finish=None)
    add_event(session, job_id, "The worker stopped; the job waits for another", level="warn")


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


def _write(session: Session, job_id: str, epoch: int, **values: Any) -> None:
    """The one fenced write."""
    fence = (
        update(FineTuningJob)
        .where(
            FineTuningJob.id == job_id, FineTuningJob.lease_epoch == epoch, FineTuningJob.status == "running"
        )
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    if session.execute(fence).rowcount != 1:  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        raise LeaseLostError(f"{job_id}, epoch {epoch}")
