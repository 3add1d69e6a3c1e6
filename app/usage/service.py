"""Rules on usage: how it is added up, and how it is shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.core.errors import InvalidRequestError
from app.usage.models import AliasUsage, Bucket, Key, Sums, Table, Usage

BUCKET_SECONDS = {"1m": 60, "1h": 3600, "1d": 86400}
DAYS_OF_MINUTES = 90
"""Older usage is kept by the day: it stands at the day's first minute."""
_KEYS: dict[Table, tuple[str, ...]] = {
    Usage: ("project_id", "minute", "model"),
    AliasUsage: ("project_id", "minute", "model", "alias"),
}
_SUMS = ("requests", "input_tokens", "output_tokens")
_DEFAULT_BUCKETS = {"1m": 60, "1h": 24, "1d": 7}
_MOST_BUCKETS = {"1m": 1440, "1h": 168, "1d": 31}


def add_usage(session: Session, counted: Mapping[Key, Sums], table: Table = Usage) -> None:
    """Adds to the sums, in one statement that other processes may run at the same time."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    columns = (*_KEYS[table], *_SUMS)
    rows: list[dict[str, Any]] = [
        dict(zip(columns, (*key, *astuple(sums)), strict=True))
        # In one order everywhere, or two processes could wait for each other's rows.
        for key, sums in sorted(counted.items(), key=lambda item: item[0])
    ]
    statement = insert(table)
    added = {name: getattr(table, name) + statement.excluded[name] for name in _SUMS}
    session.execute(statement.on_conflict_do_update(index_elements=_KEYS[table], set_=added), rows)


def fold_oldest_day(session: Session, now: float) -> bool:
    """Adds the minutes of one day into that day's first, once they are too old to be kept.

    Any number of processes may do it at once: each row is taken away, and so counted, by one of them.

    Returns:
        False: there is no such day (any more).
    """
    return any(_fold_oldest_day(session, now, table) for table in _KEYS)


def _fold_oldest_day(session: Session, now: float, table: Table) -> bool:
    day_seconds = BUCKET_SECONDS["1d"]
    too_old = (int(now) // day_seconds - DAYS_OF_MINUTES) * day_seconds
    unfolded = select(func.min(table.minute)).where(table.minute < too_old, table.minute % day_seconds != 0)
    minute = session.scalar(unfolded)
    if minute is None:
        return False
    day = minute // day_seconds * day_seconds
    names = [name for name in _KEYS[table] if name != "minute"]
    columns = [getattr(table, name) for name in (*names, *_SUMS)]
    minutes = delete(table).where(table.minute > day, table.minute < day + day_seconds)
    sums: defaultdict[Any, Sums] = defaultdict(lambda: Sums(0, 0, 0))
    for row in session.execute(minutes.returning(*columns)):
        project_id, *others = row[: len(names)]
        sums[(project_id, day, *others)] += Sums(*row[len(names) :])
    if sums:
        add_usage(session, sums, table)
    return True


def list_buckets(
    session: Session,
    project_id: str,
    *,
    start: int,
    end: int,
    width: str,
    by_model: bool,
    models: Sequence[str],
    aliases: Sequence[str],
    limit: int | None,
) -> tuple[Sequence[Bucket], int | None]:
    """The project's usage from `start` until before `end`, bucket by bucket, the empty ones too.

    With `aliases`, only what was asked by one of these names.

    Buckets begin at whole minutes, hours and days (UTC), so the first may begin before `start`.

    Returns:
        The buckets, and where the next page starts; None after the last.

    Raises:
        InvalidRequestError: `end` is not after `start`, or `limit` is more than the width allows.
    """
    if end <= start:
        raise InvalidRequestError(
            "There is no time between start and end.", code="invalid_value", param="end_time"
        )
    most = _MOST_BUCKETS[width]
    if limit is not None and limit > most:
        raise InvalidRequestError(
            f"'limit' is at most {most} for buckets of {width}.", code="invalid_value", param="limit"
        )
    seconds = BUCKET_SECONDS[width]
    first = start // seconds * seconds
    starts = range(first, end, seconds)[: limit or _DEFAULT_BUCKETS[width]]
    until = starts[-1] + seconds
    table: Table = AliasUsage if aliases else Usage
    bucket = (table.minute - table.minute % seconds).label("bucket")
    query = select(
        bucket,
        table.model,
        func.sum(table.requests),
        func.sum(table.input_tokens),
        func.sum(table.output_tokens),
    ).where(table.project_id == project_id, table.minute >= first, table.minute < until)
    if models:
        query = query.where(table.model.in_(models))
    if aliases:
        query = query.where(AliasUsage.alias.in_(aliases))
    found: defaultdict[int, dict[str | None, Sums]] = defaultdict(dict)
    for at, model, *numbers in session.execute(query.group_by("bucket", table.model).order_by(table.model)):
        group = model if by_model else None
        sums = Sums(*map(int, numbers))
        before = found[int(at)].get(group)
        found[int(at)][group] = sums if before is None else before + sums
    buckets = [Bucket(at, at + seconds, list(found[at].items())) for at in starts]
    return buckets, until if until < end else None
