"""The queue of jobs: how a worker reports its progress and ends a job that it has claimed.

`app.fine_tuning.claim` chooses which job is next.

A job is leased (`app.core.lease`) while its status is `running`; each lease is one attempt at it. An attempt
that finds its lease lost must stop and publish nothing: the job was cancelled or paused, or another worker
has claimed it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, String, and_, func, insert, literal_column, select
from sqlalchemy.orm import Session

from app.auth.models import Project
from app.core.database import database_now
from app.core.lease import Lease, LeaseTable
from app.fine_tuning.gpu_hours import record_attempt
from app.fine_tuning.models import Attempt, Checkpoint, Event, FineTuningJob
from app.webhooks import outbox
from app.webhooks.events import EventType

MAX_ATTEMPTS = 3
"""How many attempts in a row may die without a newer checkpoint before the job fails."""
MAX_WORKERS_LOST = 10
"""The same for attempts whose worker died with them, which is rarely the job's fault."""
NEVER = 1e9
"""In seconds; an infinite number could not be sent as JSON."""
_LONGEST_PAUSE = 300.0

# Literals, not parameters: a generic plan could not use the partial index of queued jobs, so PostgreSQL would
# plan every claim anew, which takes as long as the claim itself. See
# https://www.postgresql.org/docs/current/sql-prepare.html, "custom" and "generic" plans.
QUEUED, RUNNING = literal_column("'queued'", String), literal_column("'running'", String)

LEASES = LeaseTable(
    FineTuningJob,
    key=FineTuningJob.id,
    epoch=FineTuningJob.lease_epoch,
    until=FineTuningJob.lease_until,
    held=FineTuningJob.status == RUNNING,
    status=FineTuningJob.status,
)
_NO_WORKER = "No worker offers"
_NEW_EVENT = insert(Event).inline()
_EVENTS_OF_ENDS: Mapping[str, EventType] = {
    "succeeded": "fine_tuning.job.succeeded",
    "failed": "fine_tuning.job.failed",
    "cancelled": "fine_tuning.job.cancelled",
}


def reclaim_expired(session: Session, retry_seconds: float, spared: Collection[str] = ()) -> int:
    """End the attempts whose lease has expired, and return how many. Any worker may do it at any time.

    `spared` are jobs whose attempts are known to be alive: those of the worker that asks.
    """
    others = and_(LEASES.expired, FineTuningJob.id.not_in(spared))
    return _reclaim(session, others, "Its worker stopped reporting", retry_seconds)


def reclaim_from(session: Session, dead_workers: Sequence[str], retry_seconds: float) -> int:
    """End the attempts of workers that are known to be dead, whatever their leases, and return how many."""
    theirs = and_(FineTuningJob.status == RUNNING, FineTuningJob.worker_id.in_(dead_workers))
    return _reclaim(session, theirs, "Its worker died", retry_seconds)


def record_event(
    session: Session,
    lease: Lease,
    message: str,
    *,
    level: str = "info",
) -> None:
    """Add a line to the job's log.

    Raises:
        LeaseLostError: the attempt has lost its lease.
    """
    LEASES.verify(session, lease)
    add_event(session, lease.id, message, level=level)


def record_estimate(session: Session, lease: Lease, *, estimated_finish: float) -> None:
    """Record when the job is expected to end, before its first step.

    Raises:
        LeaseLostError: the attempt has lost its lease.
    """
    expected = func.coalesce(FineTuningJob.expected_seconds, estimated_finish - FineTuningJob.started_at)
    LEASES.update(session, lease, estimated_finish=estimated_finish, expected_seconds=expected)


def record_step(
    session: Session,
    lease: Lease,
    step: int,
    message: str,
    *,
    data: dict[str, Any],
    estimated_finish: float,
) -> None:
    """Record the metrics of a step, and when the job is now expected to end.

    A step that is recorded already is not recorded again: an earlier attempt may have got as far, or the
    step was committed but the connection broke before the worker knew.

    Raises:
        LeaseLostError: the attempt has lost its lease.
    """
    recorded = session.scalar(select(FineTuningJob.recorded_step).where(FineTuningJob.id == lease.id)) or 0
    LEASES.update(session, lease, recorded_step=max(step, recorded), estimated_finish=estimated_finish)
    if step > recorded:
        add_event(session, lease.id, message, data=data)


def record_checkpoint(
    session: Session, lease: Lease, *, step: int, name: str, metrics: dict[str, Any]
) -> None:
    """Record a checkpoint that is complete in storage; one that an earlier attempt recorded stays as it is.

    Raises:
        LeaseLostError: the attempt has lost its lease.
    """
    LEASES.verify(session, lease)
    known = select(Checkpoint).where(Checkpoint.job_id == lease.id, Checkpoint.step_number == step)
    if session.scalar(known) is None:
        session.add(
            Checkpoint(job_id=lease.id, step_number=step, fine_tuned_model_checkpoint=name, metrics=metrics)
        )


def record_saved(session: Session, lease: Lease, step: int) -> None:
    """Record that a checkpoint of this step is complete in storage: if it is the newest, that is progress.

    Raises:
        LeaseLostError: the attempt has lost its lease.
    """
    LEASES.verify(session, lease)
    saved = session.scalar(select(FineTuningJob.saved_step).where(FineTuningJob.id == lease.id))
    if saved is None or step > saved:
        LEASES.update(
            session, lease, saved_step=step, saved_epoch=lease.epoch, attempts_failed=0, workers_lost=0
        )


def recorded_metrics(session: Session, job_id: str) -> Sequence[dict[str, Any]]:
    """The metrics of every step in the job's log, in order."""
    steps = select(Event.data).where(Event.job_id == job_id, Event.type == "metrics").order_by(Event.seq)
    return [data for data in session.scalars(steps) if data is not None]


def succeed(
    session: Session,
    lease: Lease,
    *,
    fine_tuned_model: str,
    trained_tokens: int,
    result_file_id: str,
) -> None:
    """End the job as succeeded; the row of its adapter must be written in the same transaction.

    Raises:
        LeaseLostError: the attempt has lost its lease.
    """
    _end_attempt(
        session,
        lease,
        status="succeeded",
        finished_at=time.time(),
        fine_tuned_model=fine_tuned_model,
        trained_tokens=trained_tokens,
        result_file_id=result_file_id,
    )
    created = f"New fine-tuned model created: {fine_tuned_model}"
    add_event(session, lease.id, created, "The job has successfully completed")
    announce_end(session, lease.id, "succeeded")


def fail(session: Session, lease: Lease, *, code: str, message: str, param: str | None) -> None:
    """End the job as failed, and record the reason.

    Raises:
        LeaseLostError: the attempt has lost its lease.
    """
    error = {"code": code, "message": message, "param": param}
    _end_attempt(session, lease, status="failed", finished_at=time.time(), error=error)
    add_event(session, lease.id, f"The job failed: {message}", level="error")
    announce_end(session, lease.id, "failed")


def retry(session: Session, lease: Lease, reason: str, *, code: str, retry_seconds: float) -> None:
    """End an attempt that died.

    If it saved a newer checkpoint than those before it, the next attempt may begin at once. Otherwise the job
    waits, first for `retry_seconds` and each time for twice as long, or fails if too many attempts in a row
    made no progress: `MAX_WORKERS_LOST` if the code is `worker_lost`, `MAX_ATTEMPTS` for any other.

    Raises:
        LeaseLostError: the attempt has lost its lease.
    """
    job = FineTuningJob
    row = select(job.saved_epoch, job.saved_step, job.workers_lost, job.attempts_failed).where(
        job.id == lease.id
    )
    saved_epoch, saved_step, workers_lost, attempts_failed = session.execute(row).one()
    if saved_epoch == lease.epoch:
        _requeue(session, lease, deaths=FineTuningJob.deaths + 1)
        add_event(session, lease.id, f"{reason}; the next attempt resumes at step {saved_step}", level="warn")
        return
    if code == "worker_lost":
        died, most, counter = workers_lost + 1, MAX_WORKERS_LOST, "workers_lost"
    else:
        died, most, counter = attempts_failed + 1, MAX_ATTEMPTS, "attempts_failed"
    if died >= most:
        message = f"{reason}, {most} times without a newer checkpoint; the worker's log has the details."
        fail(session, lease, code=code, message=message, param=None)
        return
    pause = min(retry_seconds * 2 ** (died - 1), max(retry_seconds, _LONGEST_PAUSE))
    counted = {counter: died, "deaths": job.deaths + 1}
    _requeue(session, lease, not_before=database_now() + pause, **counted)
    message = f"{reason} before it saved a newer checkpoint; attempt {died + 1} of {most} in {pause:.0f} s"
    add_event(session, lease.id, message, level="warn")


def failure_seconds(session: Session, job_id: str) -> float:
    """Return the time that the job's attempts have taken for each that died; `NEVER` if none has."""
    taken = select(func.sum(Attempt.ended_at - Attempt.started_at)).where(Attempt.job_id == job_id)
    deaths = session.scalar(select(FineTuningJob.deaths).where(FineTuningJob.id == job_id))
    return (session.scalar(taken) or 0.0) / deaths if deaths else NEVER


def release(
    session: Session, lease: Lease, reason: str = "The worker stopped; the job waits for another"
) -> None:
    """Give an unfinished job back to the queue; the attempt does not count as failed.

    Raises:
        LeaseLostError: the attempt has lost its lease.
    """
    _requeue(session, lease)
    add_event(session, lease.id, reason, level="warn")


def pause_for_room(session: Session, lease: Lease, reason: str) -> None:
    """Pause a job whose progress cannot be saved, until `resume_with_room`.

    Raises:
        LeaseLostError: the attempt has lost its lease.
    """
    _end_attempt(session, lease, status="paused", pause_reason="storage_full", worker_id=None)
    add_event(session, lease.id, f"Paused until there is room: {reason}", level="warn")


def resume_with_room(session: Session) -> int:
    """Queue the jobs that were paused because the storage was full, and return how many."""
    waiting = session.scalars(
        select(FineTuningJob)
        .where(FineTuningJob.status == "paused", FineTuningJob.pause_reason == "storage_full")
        .with_for_update(skip_locked=True)
    ).all()
    for job in waiting:
        job.status, job.pause_reason = "queued", None
        add_event(session, job.id, "There is room again: the job waits for a worker")
    return len(waiting)


def note_missing_gpus(session: Session, offered: int) -> None:
    """Say in the log of each waiting job, once, that it needs more GPUs than any worker offers."""
    if not offered:
        return  # no worker is running, so nothing is known of what they offer
    is_noted = select(Event.id).where(Event.job_id == FineTuningJob.id, Event.message.startswith(_NO_WORKER))
    waiting = session.scalars(
        select(FineTuningJob)
        .where(FineTuningJob.status == QUEUED, FineTuningJob.gpus > offered, ~is_noted.exists())
        .with_for_update(skip_locked=True)
    ).all()
    for job in waiting:
        add_event(session, job.id, f"{missing_gpus(job.gpus, offered)}: the job waits", level="warn")


def missing_gpus(gpus: int, offered: int) -> str:
    """Say that no worker offers as many GPUs as a job needs."""
    return f"{_NO_WORKER} {gpus} GPUs; the largest offers {offered}"


def position(session: Session, job: FineTuningJob) -> int:
    """Return how many waiting jobs will be claimed before this one if no job is created or ends meanwhile."""
    return positions(session, [job.id]).get(job.id, 0)


def positions(session: Session, job_ids: Sequence[str]) -> dict[str, int]:
    """Return the positions of several jobs by their ids; jobs that do not wait are left out.

    The order is that of `claim.claim_next`: the n-th waiting job of a project is claimed while `running + n -
    1` of the project's jobs run.
    """
    queued, of_project = FineTuningJob.status == "queued", FineTuningJob.project_id == Project.id
    running = select(func.count()).where(of_project, FineTuningJob.status == "running")
    last_start = select(func.coalesce(func.max(FineTuningJob.started_at), 0.0)).where(of_project)
    projects = (
        select(
            Project.id,
            running.scalar_subquery().label("running"),
            last_start.scalar_subquery().label("last_start"),
        )
        .where(select(FineTuningJob.id).where(of_project, queued).exists())
        .subquery()
    )
    turn = func.row_number().over(
        partition_by=FineTuningJob.project_id,
        order_by=(FineTuningJob.rank, FineTuningJob.created_at, FineTuningJob.id),
    )
    waiting = select(FineTuningJob.id, FineTuningJob.project_id, turn.label("turn")).where(queued).subquery()
    place = func.row_number().over(
        order_by=(
            projects.c.running + waiting.c.turn,
            projects.c.running.desc(),
            projects.c.last_start,
            projects.c.id,
        )
    )
    line = (
        select(waiting.c.id, place.label("place"))
        .join(projects, projects.c.id == waiting.c.project_id)
        .subquery()
    )
    rows = session.execute(select(line.c.id, line.c.place).where(line.c.id.in_(job_ids)))
    return {job_id: place - 1 for job_id, place in rows}


def add_event(
    session: Session, job_id: str, *messages: str, level: str = "info", data: dict[str, Any] | None = None
) -> None:
    """Add lines to the job's log; with data, they are lines of metrics."""
    kind = "message" if data is None else "metrics"
    line = {"job_id": job_id, "level": level, "type": kind, "data": data}
    session.connection().execute(_NEW_EVENT, [line | {"message": message} for message in messages])


def announce_end(session: Session, job_id: str, status: Literal["succeeded", "failed", "cancelled"]) -> None:
    """Tell the project's webhooks that the job has ended; to be called in the transaction that ends it."""
    project = select(FineTuningJob.project_id).where(FineTuningJob.id == job_id).scalar_subquery()
    outbox.add_event(session, project, _EVENTS_OF_ENDS[status], {"id": job_id})


def _reclaim(session: Session, which: ColumnElement[bool], reason: str, retry_seconds: float) -> int:
    jobs = session.scalars(select(FineTuningJob).where(which).with_for_update(skip_locked=True)).all()
    for job in jobs:
        retry(session, LEASES.lease_of(job), reason, code="worker_lost", retry_seconds=retry_seconds)
    return len(jobs)


def _requeue(session: Session, lease: Lease, **values: Any) -> None:
    _end_attempt(session, lease, status="queued", worker_id=None, estimated_finish=None, **values)


def _end_attempt(session: Session, lease: Lease, **values: Any) -> None:
    LEASES.verify(session, lease)  # locks the job's row first, as those do who cancel or pause it
    record_attempt(session, lease.id)
    LEASES.release(session, lease, **values)
