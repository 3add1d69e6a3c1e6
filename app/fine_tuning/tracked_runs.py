"""The queue of runs in trackers: how a process claims one, and records how much of a job it has sent there.

What is sent is read from the job's log, so nothing is lost if the tracker or the process that sends is away
for a while, and training never waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session, joinedload
from tenacity import RetryCallState, Retrying, wait_random_exponential

from app.core.database import database_now
from app.core.lease import Lease, LeaseTable
from app.core.settings import Settings
from app.fine_tuning import queue
from app.fine_tuning.models import FINAL_STATUSES, Event, FineTuningJob, TrackedRun

BACK_OFF = wait_random_exponential(multiplier=20, min=10, max=3600)
"""The seconds until the next attempt after one that failed: from 10 s to 20 s at first, up to an hour."""
GIVEN_UP_SECONDS = 3 * 86400.0
"""How long after the job's end it is tried to send the rest."""
_STEPS_AT_ONCE = 500

LEASES = LeaseTable(
    TrackedRun,
    key=TrackedRun.job_id,
    epoch=TrackedRun.lease_epoch,
    until=TrackedRun.lease_until,
    held=TrackedRun.lease_until.is_not(None),
)
_CLAIMABLE = and_(
    TrackedRun.ended_at.is_(None),
    TrackedRun.not_before <= database_now(),
    or_(TrackedRun.lease_until.is_(None), LEASES.expired),
    select(FineTuningJob.id)
    .where(
        FineTuningJob.id == TrackedRun.job_id,
        or_(FineTuningJob.recorded_step > TrackedRun.sent_step, FineTuningJob.status.in_(FINAL_STATUSES)),
    )
    .exists(),
)


def track(session: Session, settings: Settings, job: FineTuningJob) -> None:
    """Have a new job's metrics sent to the deployment's tracker, if it has one."""
    if not settings.tracker:
        return
    asked: dict[str, Any] = job.integrations[0]["wandb"] if job.integrations else {}
    session.add(
        TrackedRun(
            job_id=job.id,
            tracker=settings.tracker,
            project=asked.get("project") or settings.tracker_project,
            entity=asked.get("entity"),
            name=asked.get("name") or job.id,
            tags=asked.get("tags") or [],
        )
    )


def has_claimable(session: Session) -> bool:
    """Whether there is a run to claim; an idle process asks this first, as it takes no lock."""
    return session.scalar(select(TrackedRun.job_id).where(_CLAIMABLE).limit(1)) is not None


def claim_next(session: Session, lease_seconds: float) -> TrackedRun | None:
    """Lease a run for whose job there is something to send."""
    next_run = (
        select(TrackedRun.job_id)
        .where(_CLAIMABLE)
        .order_by(TrackedRun.not_before, TrackedRun.job_id)
        .limit(1)
        .with_for_update(skip_locked=True, of=TrackedRun)
    )
    return session.scalar(LEASES.claim(next_run, lease_seconds))


def find_job(session: Session, lease: Lease) -> FineTuningJob:
    """Return the run's job as it is now, with its training file."""
    return session.get_one(FineTuningJob, lease.id, options=[joinedload(FineTuningJob.training_file)])


def find_steps(session: Session, lease: Lease, after: int) -> Sequence[Event]:
    """Return the next lines of the job's log that have the metrics of steps after this one, in order.

    A step has one line, so none of them is older than as many of the newest lines as there are steps.
    """
    last = session.get_one(FineTuningJob, lease.id).recorded_step
    if last <= after:
        return []
    lines = select(Event).where(Event.job_id == lease.id, Event.type == "metrics")
    oldest = lines.with_only_columns(Event.seq).order_by(Event.seq.desc()).offset(last - after - 1).limit(1)
    since = session.scalar(oldest) or 0
    newest = lines.where(Event.seq >= since).order_by(Event.seq).execution_options(yield_per=_STEPS_AT_ONCE)
    with session.scalars(newest) as found:
        steps = (each for each in found if each.data is not None and each.data["step"] > after)
        return list(islice(steps, _STEPS_AT_ONCE))


def announce(session: Session, lease: Lease, message: str) -> None:
    """Say once, in the job's log, where its run is.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    LEASES.update(session, lease, is_announced=True)
    queue.add_event(session, lease.id, message)


def record_sent(session: Session, lease: Lease, step: int) -> None:
    """Record that the metrics up to this step were sent.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    LEASES.update(session, lease, sent_step=step, failures=0)


def record_failure(session: Session, lease: Lease, warning: str) -> None:
    """Leave the run alone for a while; the job's log gets the warning the first time.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    LEASES.verify(session, lease)
    run = session.get_one(TrackedRun, lease.id)
    is_warned, failures = run.is_warned, run.failures + 1
    job = session.get_one(FineTuningJob, lease.id)
    is_given_up = job.finished_at is not None and time.time() >= job.finished_at + GIVEN_UP_SECONDS
    LEASES.release(
        session,
        lease,
        failures=failures,
        is_warned=True,
        not_before=database_now() + _back_off(failures),
        ended_at=time.time() if is_given_up else None,
    )
    if not is_warned:
        queue.add_event(session, lease.id, warning, level="warn")


def end(session: Session, lease: Lease) -> None:
    """Record that all of an ended job was sent.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    LEASES.release(session, lease, ended_at=time.time())


def release(session: Session, lease: Lease) -> None:
    """Give the run back, so that any process can claim it.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    LEASES.release(session, lease)


def _back_off(failures: int) -> float:
    """Return the seconds until the next attempt after so many that failed."""
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = failures
    return BACK_OFF(state)
