"""Folds usage: entries into sums by minute and, after some months, minutes into days."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.auth.service import lock_projects
from app.core.database import insert_into
from app.usage.models import (
    KEYS,
    SUMS,
    AliasUsage,
    EntryKey,
    Key,
    KeyUsage,
    Sums,
    Table,
    Usage,
    UsageEntry,
)

DAYS_OF_MINUTES = 90
"""Usage that is older than this many days is kept by the day, in the day's first minute."""
_DAY_SECONDS = 86400
_ENTRY_SECONDS = 300
"""Entries of minutes that began before this are folded. Gateways have then long written all of them."""
_ENTRIES_AT_ONCE = 5000


def fold_entries(session: Session, now: float) -> bool:
    """Fold some of the oldest entries into the sums of their minutes, if they are old enough.

    Any number of processes may do it at once: each entry is deleted, and so counted, by one of them.

    Returns:
        Whether there were such entries that no other process was folding.
    """
    old = select(UsageEntry.seq, UsageEntry.project_id).where(UsageEntry.minute < now - _ENTRY_SECONDS)
    found = session.execute(old.order_by(UsageEntry.minute).limit(_ENTRIES_AT_ONCE)).all()
    # First, as a project's deletion does: in the other order, the two could wait for each other.
    lock_projects(session, {project_id for _, project_id in found})
    some = select(UsageEntry.seq).where(UsageEntry.seq.in_([seq for seq, _ in found]))
    mine = delete(UsageEntry).where(UsageEntry.seq.in_(some.with_for_update(skip_locked=True)))
    columns = [getattr(UsageEntry, name) for name in (*EntryKey._fields, *SUMS)]
    folded: dict[Table, defaultdict[Key, Sums]] = {table: _no_sums() for table in KEYS}
    for project_id, minute, model, key_id, alias, *numbers in session.execute(mine.returning(*columns)):
        key, sums = (project_id, minute, model), Sums(*numbers)
        folded[Usage][key] += sums
        folded[KeyUsage][*key, key_id] += sums
        if alias is not None:
            folded[AliasUsage][*key, alias] += sums
    for table, counted in folded.items():  # in the same order as gateways of earlier versions write them
        add_usage(session, counted, table)
    return bool(folded[Usage])


def fold_oldest_day(session: Session, now: float) -> bool:
    """Fold the minutes of the oldest day into that day's first, if they are too old to be kept.

    Any number of processes may do it at once: each row is deleted, and so counted, by one of them.

    Returns:
        Whether there was such a day.
    """
    return any(_fold_oldest_day(session, now, table) for table in KEYS)


def _fold_oldest_day(session: Session, now: float, table: Table) -> bool:
    too_old = (int(now) // _DAY_SECONDS - DAYS_OF_MINUTES) * _DAY_SECONDS
    unfolded = select(func.min(table.minute)).where(table.minute < too_old, table.minute % _DAY_SECONDS != 0)
    minute = session.scalar(unfolded)
    if minute is None:
        return False
    day = minute // _DAY_SECONDS * _DAY_SECONDS
    names = [name for name in KEYS[table] if name != "minute"]
    columns = [getattr(table, name) for name in (*names, *SUMS)]
    of_day = table.minute > day, table.minute < day + _DAY_SECONDS
    # First, as a project's deletion does.
    lock_projects(session, session.scalars(select(table.project_id).where(*of_day).distinct()).all())
    sums = _no_sums()
    for row in session.execute(delete(table).where(*of_day).returning(*columns)):
        project_id, *others = row[: len(names)]
        sums[(project_id, day, *others)] += Sums(*row[len(names) :])
    add_usage(session, sums, table)
    return True


def add_usage(session: Session, counted: Mapping[Key, Sums], table: Table = Usage) -> None:
    """Add to the sums, in one statement that other processes may run at the same time.

    What deleted projects have used is dropped.
    """
    there = lock_projects(session, {project_id for project_id, *_ in counted})
    columns = (*KEYS[table], *SUMS)
    rows: list[dict[str, Any]] = [
        dict(zip(columns, (*key, *astuple(sums)), strict=True))
        # Sorted, since two processes that lock rows in different orders could wait for each other.
        for key, sums in sorted(counted.items(), key=lambda item: item[0])
        if key[0] in there
    ]
    if not rows:
        return
    statement = insert_into(session, table)
    added = {name: getattr(table, name) + statement.excluded[name] for name in SUMS}
    session.execute(statement.on_conflict_do_update(index_elements=KEYS[table], set_=added), rows)


def _no_sums() -> defaultdict[Any, Sums]:
    return defaultdict(lambda: Sums(0, 0, 0))
