"""The queues of batches: how an API process claims one, records its progress, and ends it.

A batch is leased (`app.core.lease`) while `lease_until` is set, whatever its status. Each stage of its life
has a lease of its own, so that long batches, whose requests are being asked, hold up neither the validation
nor the publication of others. One that is cancelled or overdue is taken from the process that works on it,
and whoever claims it next publishes what was answered.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, and_, case, delete, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from app.batches.models import FINAL_STATUSES, Batch, BatchAnswer
from app.core.database import database_now, insert_into
from app.core.lease import Lease, LeaseTable
from app.webhooks import outbox
from app.webhooks.events import EventType

LEASES = LeaseTable(
    Batch,
    key=Batch.id,
    epoch=Batch.lease_epoch,
    until=Batch.lease_until,
    held=Batch.lease_until.is_not(None),
    status=Batch.status,
)
_MAX_ASKED_OF_PROJECT = 4
"""Batches of one project that are asked at once, so that it does not hold every place."""
_ANSWERS_A_DELETION = 1000
_EVENTS: Mapping[str, EventType] = {
    "failed": "batch.failed",
    "completed": "batch.completed",
    "expired": "batch.expired",
    "cancelled": "batch.cancelled",
}
"""The event of each final status."""


def _leased_of_project(*conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    """Count the leased batches of the batch's project that meet the conditions on `_other`."""
    return (
        select(func.count())
        .where(_other.project_id == Batch.project_id, _other.lease_until > database_now(), *conditions)
        .scalar_subquery()
    )


_other = aliased(Batch)
_FREE = or_(Batch.lease_until.is_(None), LEASES.expired)
_IN_TIME = Batch.expires_at > database_now()
_OVERDUE = and_(Batch.status.in_(("validating", "in_progress")), Batch.expires_at <= database_now())


@dataclass(frozen=True, slots=True)
class Stage:
    """The batches that wait for one kind of work: a queue of `app.core.lease_runner`."""

    claimable: ColumnElement[bool]
    LEASES: LeaseTable[Batch] = LEASES

    def has_claimable(self, session: Session) -> bool:
        """Whether there is a batch to claim; an idle process asks this first, as it takes no lock."""
        return session.scalar(select(Batch.id).where(self.claimable).limit(1)) is not None

    def claim_next(self, session: Session, lease_seconds: float) -> Batch | None:
        """Lease the oldest batch of the project with the fewest leased ones; None when there is none.

        The status of one that is overdue becomes `finalizing`: it is asked no further.
        """
        next_batch = (
            select(Batch.id)
            .where(self.claimable)
            .order_by(_leased_of_project(), Batch.created_at, Batch.id)
            .limit(1)
            .with_for_update(skip_locked=True, of=Batch)
        )
        overdue = {
            "status": case((_OVERDUE, "finalizing"), else_=Batch.status),
            "finalizing_at": case((_OVERDUE, time.time()), else_=Batch.finalizing_at),
        }
        return session.scalar(LEASES.claim(next_batch, lease_seconds, **overdue))

    def release(self, session: Session, lease: Lease) -> None:
        """Give the batch back to the queue, so that another process continues it.

        Raises:
            LeaseLostError: this process has lost its lease.
        """
        LEASES.release(session, lease)


VALIDATION = Stage(and_(Batch.status == "validating", _FREE, _IN_TIME))
ASKING = Stage(
    and_(
        Batch.status == "in_progress",
        _FREE,
        _IN_TIME,
        _leased_of_project(_other.status == "in_progress") < _MAX_ASKED_OF_PROJECT,
    )
)
PUBLICATION = Stage(or_(and_(Batch.status.in_(("cancelling", "finalizing")), _FREE), _OVERDUE))


def begin(session: Session, lease: Lease, *, model: str, total: int) -> None:
    """Record that the file is valid, and let its requests be asked.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    LEASES.release(session, lease, status="in_progress", in_progress_at=time.time(), model=model, total=total)


def fail(session: Session, lease: Lease, errors: list[dict[str, Any]]) -> None:
    """End the batch, since its file is not valid.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    end(session, lease, "failed", errors=errors)


def record_answers(
    session: Session, lease: Lease, answers: Sequence[dict[str, Any]], sums: dict[str, int]
) -> None:
    """Record answers, and the sums of all answers that there are now.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    LEASES.update(session, lease, **sums)
    # A commit may have succeeded although the connection broke.
    session.execute(
        insert_into(session, BatchAnswer).on_conflict_do_nothing(),
        [{"batch_id": lease.id} | answer for answer in answers],
    )


def finalize(session: Session, lease: Lease) -> None:
    """Record that all has been asked, and let the output be written.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    LEASES.release(session, lease, status="finalizing", finalizing_at=time.time())


def end(session: Session, lease: Lease, status: str, **values: Any) -> None:
    """End the batch with a final status, and tell the project's webhooks.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    LEASES.release(session, lease, **{"status": status, f"{status}_at": time.time(), **values})
    project = select(Batch.project_id).where(Batch.id == lease.id).scalar_subquery()
    outbox.add_event(session, project, _EVENTS[status], {"id": lease.id})


def find_published(session: Session) -> tuple[str, Sequence[int]] | None:
    """Return a batch that has ended, and the numbers of some of its answers; None if there are none left."""
    has_answers = exists().where(BatchAnswer.batch_id == Batch.id)
    ended = session.scalar(select(Batch.id).where(Batch.status.in_(FINAL_STATUSES), has_answers).limit(1))
    if ended is None:
        return None
    numbers = select(BatchAnswer.number).where(BatchAnswer.batch_id == ended).limit(_ANSWERS_A_DELETION)
    return ended, session.scalars(numbers).all()


def delete_answers(session: Session, batch_id: str, numbers: Sequence[int]) -> None:
    """Delete answers of a batch by their primary keys, which holds a database's lock only briefly."""
    session.execute(
        delete(BatchAnswer).where(BatchAnswer.batch_id == batch_id, BatchAnswer.number.in_(numbers))
    )
