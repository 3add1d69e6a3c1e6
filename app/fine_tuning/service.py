"""Fine-tuning jobs: listing, cancelling, pausing and resuming them."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from sqlalchemy import Text, cast, func, or_, select
from sqlalchemy.orm import Session, selectinload

from app.core.errors import ConflictError, NotFoundError
from app.core.pagination import fetch_page
from app.fine_tuning import queue
from app.fine_tuning.gpu_hours import record_attempt, require_gpu_hours
from app.fine_tuning.models import ALLOWED_MOVES, IS_MESSAGE, Checkpoint, Event, FineTuningJob


def get_job(session: Session, project_id: str, job_id: str) -> FineTuningJob:
    """Return the project's job.

    Raises:
        NotFoundError: it does not exist, or is another project's.
    """
    job = session.scalar(
        select(FineTuningJob).where(FineTuningJob.id == job_id, FineTuningJob.project_id == project_id)
    )
    if job is None:
        raise NotFoundError(f"No fine-tuning job '{job_id}'.", code="fine_tuning_job_not_found")
    return job


def list_jobs(
    session: Session,
    project_id: str,
    *,
    metadata: dict[str, str] | None,
    after: str | None,
    limit: int,
    statuses: Collection[str] = (),
    text: str = "",
) -> tuple[Sequence[FineTuningJob], bool]:
    """Return a page of the project's jobs, newest first, and whether more follow.

    Args:
        session: the transaction.
        project_id: whose jobs.
        metadata: the pairs that they have; None for jobs without any metadata.
        after: the id of the job that the page follows; None for the first page.
        limit: the most jobs of the page.
        statuses: those that they may have; any if there are none.
        text: a part of their id, suffix or model, in upper or lower case.
    """
    files = selectinload(FineTuningJob.training_file), selectinload(FineTuningJob.validation_file)
    query = select(FineTuningJob).where(FineTuningJob.project_id == project_id).options(*files)
    if metadata is None:
        # An empty object, like none at all, is no metadata.
        query = query.where(func.coalesce(cast(FineTuningJob.job_metadata, Text), "{}").in_(("{}", "null")))
    for key, value in (metadata or {}).items():
        query = query.where(FineTuningJob.job_metadata[key].as_string() == value)
    if statuses:
        query = query.where(FineTuningJob.status.in_(statuses))
    if text:
        named = (FineTuningJob.id, FineTuningJob.suffix, FineTuningJob.model, FineTuningJob.parent)
        query = query.where(or_(*(column.icontains(text, autoescape=True) for column in named)))
    return fetch_page(
        session,
        query,
        (FineTuningJob.created_at, FineTuningJob.id),
        identity=FineTuningJob.id,
        after=after,
        limit=limit,
    )


def list_events(
    session: Session,
    project_id: str,
    job_id: str,
    *,
    after: str | None,
    limit: int,
    only_messages: bool = False,
) -> tuple[Sequence[Event], bool]:
    """Return a page of the job's log, newest first, and whether more follow; perhaps without its metrics."""
    job = get_job(session, project_id, job_id)
    query = select(Event).where(Event.job_id == job.id)
    if only_messages:
        query = query.where(Event.type == IS_MESSAGE)
    return fetch_page(session, query, (Event.seq,), identity=Event.id, after=after, limit=limit)


def list_checkpoints(
    session: Session, project_id: str, job_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[Checkpoint], bool]:
    """Return a page of the job's checkpoints, newest first, and whether more follow."""
    job = get_job(session, project_id, job_id)
    query = select(Checkpoint).where(Checkpoint.job_id == job.id)
    return fetch_page(
        session, query, (Checkpoint.step_number,), identity=Checkpoint.id, after=after, limit=limit
    )


def cancel_job(session: Session, project_id: str, job_id: str) -> FineTuningJob:
    """Cancel a job that has not ended; the worker that trains it finds out by its next fenced write.

    Raises:
        ConflictError: the job has succeeded or failed.
    """
    job = _move(session, project_id, job_id, "cancelled", "The job was cancelled.")
    if job.finished_at is None:
        job.finished_at = time.time()
        queue.announce_end(session, job.id, "cancelled")
    return job


def pause_job(session: Session, project_id: str, job_id: str) -> FineTuningJob:
    """Pause a job; its worker saves what it can, and takes another.

    Raises:
        ConflictError: the job has ended.
    """
    job = _move(session, project_id, job_id, "paused", "The job was paused.")
    job.pause_reason = "requested"
    return job


def resume_job(session: Session, project_id: str, job_id: str) -> FineTuningJob:
    """Put a paused job back into the queue; a job that waits or runs stays as it is.

    Raises:
        ConflictError: the job has ended.
        QuotaExceededError: the project's GPU-hours are used up.
    """
    job = get_job(session, project_id, job_id)
    if job.status in ("queued", "running"):
        return job
    if job.status == "paused":
        require_gpu_hours(session, project_id)
    job = _move(session, project_id, job_id, "queued", "The job was resumed; it waits for a worker.")
    job.pause_reason = None
    return job


def count_by_status(session: Session) -> dict[str, int]:
    """Count the jobs of all projects by status."""
    rows = session.execute(select(FineTuningJob.status, func.count()).group_by(FineTuningJob.status))
    return {status: count for status, count in rows}  # noqa: C416 - rows are no pairs to the type checker


def _move(session: Session, project_id: str, job_id: str, status: str, message: str) -> FineTuningJob:
    """Move the job to a status; one that has that status stays as it is."""
    job = get_job(session, project_id, job_id)
    # Locked, so that a worker that is completing it either has done so or finds it moved.
    session.refresh(job, with_for_update=True)
    if job.status == status:
        return job
    if status not in ALLOWED_MOVES[job.status]:
        raise ConflictError(f"The job is {job.status}; it cannot become {status}.", code=f"job_{job.status}")
    record_attempt(session, job.id)
    job.status = status
    job.lease_until = job.worker_id = job.estimated_finish = None
    queue.add_event(session, job.id, message, level="warn")
    return job
