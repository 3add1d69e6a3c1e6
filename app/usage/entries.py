"""Entries of usage: each gateway appends its own, so that no two of them write to the same row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import delete, insert
from sqlalchemy.orm import Session

from app.auth.service import lock_projects
from app.core.database import database_now, insert_into
from app.usage.models import EntryKey, Sums, UsageBatch, UsageEntry

_REMEMBERED_SECONDS = 7 * 86400.0
"""How long a gateway may go on trying to write a batch of which it does not know whether it was written."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a gateway writes in one transaction."""

    gateway_id: str
    number: int
    """One more than that of the batch before."""
    counted: Mapping[EntryKey, Sums]

    def __len__(self) -> int:
        return len(self.counted)


def append_batch(session: Session, batch: Batch) -> None:
    """Append the entries of a batch, unless it has been written before.

    What deleted projects have used is dropped.
    """
    if not _is_new(session, batch):
        return
    there = lock_projects(session, {key.project_id for key in batch.counted})
    rows = [key._asdict() | asdict(sums) for key, sums in batch.counted.items() if key.project_id in there]
    if rows:
        session.execute(insert(UsageEntry), rows)


def forget_silent_gateways(session: Session) -> None:
    """Delete the numbers of gateways that have long written nothing."""
    session.execute(delete(UsageBatch).where(UsageBatch.written_at < database_now() - _REMEMBERED_SECONDS))


def _is_new(session: Session, batch: Batch) -> bool:
    """Record the batch as its gateway's last, and return whether it was not recorded before.

    A transaction that has not ended yet, although its gateway has lost the connection, is waited for.
    """
    statement = insert_into(session, UsageBatch).values(
        gateway_id=batch.gateway_id, number=batch.number, written_at=database_now()
    )
    record = statement.on_conflict_do_update(
        index_elements=["gateway_id"],
        set_={"number": statement.excluded.number, "written_at": statement.excluded.written_at},
        where=UsageBatch.number < statement.excluded.number,
    )
    return session.scalar(record.returning(UsageBatch.number)) is not None
