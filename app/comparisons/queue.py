"""The queue of comparisons: how an API process claims one, records its progress, and ends it.

A comparison is leased (`app.core.lease`) while its status is `running`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from app.comparisons.models import Answer, Comparison, Judgement
from app.core.database import insert_into
from app.core.lease import Lease, LeaseTable
from app.webhooks import outbox
from app.webhooks.events import EventType

LEASES = LeaseTable(
    Comparison,
    key=Comparison.id,
    epoch=Comparison.lease_epoch,
    until=Comparison.lease_until,
    held=Comparison.status == "running",
    status=Comparison.status,
)
_EVENTS: Mapping[str, EventType] = {
    "succeeded": "comparison.completed",
    "failed": "comparison.failed",
    "cancelled": "comparison.cancelled",
}
"""The event of each final status."""
_CLAIMABLE = or_(Comparison.status == "queued", LEASES.expired)


def has_claimable(session: Session) -> bool:
    """Whether there is a comparison to claim; an idle process asks this first, as it takes no lock."""
    return session.scalar(select(Comparison.id).where(_CLAIMABLE).limit(1)) is not None


def claim_next(session: Session, lease_seconds: float) -> Comparison | None:
    """Lease the oldest comparison of the project with the fewest running ones; None when there is none."""
    running = aliased(Comparison)
    running_of_project = (
        select(func.count())
        .where(running.project_id == Comparison.project_id, running.status == "running")
        .scalar_subquery()
    )
    next_comparison = (
        select(Comparison.id)
        .where(_CLAIMABLE)
        .order_by(running_of_project, Comparison.created_at, Comparison.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=Comparison)
    )
    started_at = func.coalesce(Comparison.started_at, time.time())
    return session.scalar(
        LEASES.claim(next_comparison, lease_seconds, status="running", started_at=started_at)
    )


def record_answers(session: Session, lease: Lease, answers: Sequence[dict[str, Any]], done: int) -> None:
    """Record answers, and the number of answers that there are now.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    LEASES.update(session, lease, done=done)
    _insert_new(session, Answer, lease.id, answers)


def record_judgements(session: Session, lease: Lease, judgements: Sequence[dict[str, Any]]) -> None:
    """Record the replies of judges.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    LEASES.verify(session, lease)
    _insert_new(session, Judgement, lease.id, judgements)


def succeed(
    session: Session,
    lease: Lease,
    results: dict[str, Any],
    scores: Sequence[dict[str, Any]],
) -> None:
    """End the comparison as succeeded, and record its results and the score of every answer.

    A score has the keys `question`, `candidate`, `score` and `error`, the reason why there is no score.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    _end(session, lease, "succeeded", results=results)
    graded = (
        update(Answer)
        .where(
            Answer.comparison_id == lease.id,
            Answer.question == bindparam("of_question"),
            Answer.candidate == bindparam("of_candidate"),
        )
        .values(score=bindparam("new_score"), error=bindparam("new_error"))
    )
    rows = [
        {
            "of_question": score["question"],
            "of_candidate": score["candidate"],
            "new_score": score["score"],
            "new_error": score["error"],
        }
        for score in scores
    ]
    session.connection().execute(graded, rows)


def fail(session: Session, lease: Lease, *, code: str, message: str) -> None:
    """End the comparison as failed, and record the reason.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    error = {"code": code, "message": message, "param": None}
    _end(session, lease, "failed", error=error)


def release(session: Session, lease: Lease) -> None:
    """Give the comparison back to the queue, so that another process continues it.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    LEASES.release(session, lease, status="queued")


def announce_end(session: Session, comparison_id: str, status: str) -> None:
    """Tell the project's webhooks that it has ended; to be called in the transaction that ends it."""
    project = select(Comparison.project_id).where(Comparison.id == comparison_id).scalar_subquery()
    outbox.add_event(session, project, _EVENTS[status], {"id": comparison_id})


def _insert_new(
    session: Session, table: type[Answer | Judgement], comparison_id: str, rows: Sequence[dict[str, Any]]
) -> None:
    """Insert rows but those that exist: a commit may have succeeded although the connection broke."""
    session.execute(
        insert_into(session, table).on_conflict_do_nothing(),
        [{"comparison_id": comparison_id} | row for row in rows],
    )


def _end(session: Session, lease: Lease, status: str, **values: Any) -> None:
    LEASES.release(session, lease, status=status, finished_at=time.time(), api_keys=None, **values)
    announce_end(session, lease.id, status)
