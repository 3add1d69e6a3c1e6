"""The queue of jobs: how a worker gets one, keeps it, and says how it ended.

A claim raises the job's `lease_epoch`; every later write of that attempt names its epoch. A write
that finds no such row raises `LeaseLostError`: the job was cancelled or paused, or belongs to another
worker, and the attempt must stop and publish nothing. Time is the database's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Double,
    Integer,
    String,
    bindparam,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.dml import ReturningUpdate, Update

from app.auth.models import Project
from app.core.database import database_now
from app.fine_tuning.models import SPEC_VERSION, Checkpoint, Event, FineTuningJob

MAX_ATTEMPTS = 3

# Written into the statement: with parameters in their place no plan that is kept can use the index of the
# queued jobs, and PostgreSQL would plan every claim anew, which takes as long as the claim itself. See
# https://www.postgresql.org/docs/current/sql-prepare.html, "custom" and "generic" plans.
_QUEUED, _RUNNING = literal_column("'queued'", String), literal_column("'running'", String)
_ONE = literal_column("1", Integer)

_FENCE = update(FineTuningJob).where(
    FineTuningJob.id == bindparam("job"),
    FineTuningJob.lease_epoch == bindparam("attempt"),
    FineTuningJob.status == _RUNNING,
)
_RENEWAL = _FENCE.values(lease_until=database_now() + bindparam("lease_seconds", type_=Double))
_NEW_EVENT = insert(Event).inline()
"""These three run on the session's connection, not through its unit of work: that takes half the time."""


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
    """Leases the next job on one of these bases; None when there is none to take.

    Projects take turns: first the one with the fewest running jobs, then the one whose last start is
    longest ago. Within a project: priority, then age. `running_limit` bounds a project's running jobs
    (0: no bound, and one statement).
    """
    if running_limit:
        # One claim at a time: two at once would not count each other's job. The lock is the first project's
        # row, in the weak form that lets its jobs be created; SQLite's writers wait for each other anyway.
        first = select(Project.id).order_by(Project.id).limit(1)
        session.execute(first.with_for_update(key_share=True))
    claim = _claim(worker_id, tuple(base_models), lease_seconds, running_limit, spec_version)
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
    _write(session, job_id, epoch, _RENEWAL, lease_seconds=lease_seconds)


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


def expect(session: Session, job_id: str, epoch: int, *, estimated_finish: float) -> None:
    """When the job may end, before its first step.

    Raises:
        LeaseLostError: the attempt no longer owns its job.
    """
    _write(session, job_id, epoch, estimated_finish=estimated_finish)


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
    """A step's metrics, and when the job is now expected to end; a step that is on the record is left out.

    That is one of an earlier attempt's, or one whose commit came through while its answer was lost.

    Raises:
        LeaseLostError: the attempt no longer owns its job.
    """
    recorded = session.scalar(select(FineTuningJob.recorded_step).where(FineTuningJob.id == job_id)) or 0
    _write(session, job_id, epoch, recorded_step=max(step, recorded), estimated_finish=estimated_finish)
    if step > recorded:
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
    created = f"New fine-tuned model created: {fine_tuned_model}"
    add_event(session, job_id, created, "The job has successfully completed")


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
    wait = _FENCE.values(not_before=database_now() + pause)
    _back_to_queue(session, job_id, epoch, wait, attempts_failed=died)
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
    """How many waiting jobs are claimed before this one, were no more to come and none of the running to end.

    As in `claim_next`: a project's n-th waiting job is claimed when `running + n - 1` of its jobs run.
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
    return (session.scalar(select(line.c.place).where(line.c.id == job.id)) or 1) - 1


def add_event(
    session: Session, job_id: str, *messages: str, level: str = "info", data: dict[str, Any] | None = None
) -> None:
    """Lines in the job's log; with data, lines of metrics."""
    kind = "message" if data is None else "metrics"
    line = {"job_id": job_id, "level": level, "type": kind, "data": data}
    session.connection().execute(_NEW_EVENT, [line | {"message": message} for message in messages])


@lru_cache
def _claim(
    worker_id: str, base_models: tuple[str, ...], lease_seconds: float, running_limit: int, spec_version: int
) -> ReturningUpdate[FineTuningJob]:
    """`claim_next`'s statement, put together once for each worker: that takes longer than running it."""
    running, started = aliased(FineTuningJob), aliased(FineTuningJob)
    running_jobs = (
        select(func.count())
        .where(running.project_id == Project.id, running.status == _RUNNING)
        .scalar_subquery()
    )
    last_start = (
        select(func.coalesce(func.max(started.started_at), 0.0))
        .where(started.project_id == Project.id)
        .scalar_subquery()
    )
    turns = select(Project.id, running_jobs.label("running_jobs"), last_start.label("last_start"))
    if running_limit:
        turns = turns.where(running_jobs < running_limit)
    turn = turns.order_by("running_jobs", "last_start", Project.id).subquery()
    first_job = (
        select(FineTuningJob.id)
        .where(
            FineTuningJob.project_id == turn.c.id,
            FineTuningJob.status == _QUEUED,
            FineTuningJob.not_before <= database_now(),
            FineTuningJob.model.in_(base_models),
            FineTuningJob.spec_version <= literal_column(str(spec_version), Integer),
        )
        .order_by(FineTuningJob.rank, FineTuningJob.created_at, FineTuningJob.id)
        .limit(_ONE)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    # Where another worker is just claiming a project's only job, the next project's is offered. The order is
    # given twice: within, so that PostgreSQL looks into (and locks) no further project than it must.
    next_job = (
        select(first_job)
        .select_from(turn)
        .where(first_job.is_not(None))
        .order_by(turn.c.running_jobs, turn.c.last_start, turn.c.id)
        .limit(_ONE)
        .scalar_subquery()
    )
    return (
        update(FineTuningJob)
        .where(FineTuningJob.id == next_job, FineTuningJob.status == _QUEUED)
        .values(
            status="running",
            lease_epoch=FineTuningJob.lease_epoch + 1,
            lease_until=database_now() + lease_seconds,
            worker_id=worker_id,
            started_at=database_now(),
        )
        .returning(FineTuningJob)
        .execution_options(populate_existing=True, synchronize_session=False)
    )


def _back_to_queue(session: Session, job_id: str, epoch: int, fence: Update = _FENCE, **values: Any) -> None:
    _write(
        session,
        job_id,
        epoch,
        fence,
        status="queued",
        lease_until=None,
        worker_id=None,
        estimated_finish=None,
        **values,
    )


def _write(session: Session, job_id: str, epoch: int, fence: Update = _FENCE, **values: Any) -> None:
    """The one fenced write."""
    written = session.connection().execute(fence, {"job": job_id, "attempt": epoch, **values})
    if written.rowcount != 1:
        status = session.scalar(select(FineTuningJob.status).where(FineTuningJob.id == job_id))
        raise LeaseLostError(job_id, epoch, status or "gone")
