"""Usage: adding it to the database, folding what is old, and reading it in buckets."""

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
from app.usage.schemas import UsageQuery

BUCKET_SECONDS = {"1m": 60, "1h": 3600, "1d": 86400}
DAYS_OF_MINUTES = 90
"""Usage that is older than this many days is kept by the day, in the day's first minute."""
_KEYS: dict[Table, tuple[str, ...]] = {
    Usage: ("project_id", "minute", "model"),
    AliasUsage: ("project_id", "minute", "model", "alias"),
}
_SUMS = ("requests", "input_tokens", "output_tokens")
_DEFAULT_BUCKETS = {"1m": 60, "1h": 24, "1d": 7}
_MOST_BUCKETS = {"1m": 1440, "1h": 168, "1d": 31}


def add_usage(session: Session, counted: Mapping[Key, Sums], table: Table = Usage) -> None:
    """Add to the sums, in one statement that other processes may run at the same time."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    columns = (*_KEYS[table], *_SUMS)
    rows: list[dict[str, Any]] = [
        dict(zip(columns, (*key, *astuple(sums)), strict=True))
        # Sorted, since two processes that lock rows in different orders could wait for each other.
        for key, sums in sorted(counted.items(), key=lambda item: item[0])
    ]
    statement = insert(table)
    added = {name: getattr(table, name) + statement.excluded[name] for name in _SUMS}
    session.execute(statement.on_conflict_do_update(index_elements=_KEYS[table], set_=added), rows)


def fold_oldest_day(session: Session, now: float) -> bool:
    """Fold the minutes of the oldest day into that day's first, if they are too old to be kept.

    Any number of processes may do it at once: each row is deleted, and so counted, by one of them.

    Returns:
        Whether there was such a day.
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


def list_buckets(session: Session, project_id: str, query: UsageQuery) -> tuple[Sequence[Bucket], int | None]:
    """Return the usage that the query asks for, bucket by bucket, the empty ones too.

    Buckets begin at whole minutes, hours and days (UTC), so the first may begin before `query.start`.

    Returns:
        The buckets, and where the next page starts; None after the last.

    Raises:
        InvalidRequestError: the query's end is not after its start, or it asks for too many buckets.
    """
    start, end = query.start, query.end
    if end <= start:
        raise InvalidRequestError(
            "There is no time between start and end.", code="invalid_value", param="end_time"
        )
    width = query.bucket_width
    most = _MOST_BUCKETS[width]
    if query.limit is not None and query.limit > most:
        raise InvalidRequestError(
            f"'limit' is at most {most} for buckets of {width}.", code="invalid_value", param="limit"
        )
    seconds = BUCKET_SECONDS[width]
    first = start // seconds * seconds
    starts = range(first, end, seconds)[: query.limit or _DEFAULT_BUCKETS[width]]
    until = starts[-1] + seconds
    table: Table = AliasUsage if query.only_aliases else Usage
    bucket = (table.minute - table.minute % seconds).label("bucket")
    rows = select(
        bucket,
        table.model,
        func.sum(table.requests),
        func.sum(table.input_tokens),
        func.sum(table.output_tokens),
    ).where(table.project_id == project_id, table.minute >= first, table.minute < until)
    if query.only_models:
        rows = rows.where(table.model.in_(query.only_models))
    if query.only_aliases:
        rows = rows.where(AliasUsage.alias.in_(query.only_aliases))
    found: defaultdict[int, dict[str | None, Sums]] = defaultdict(dict)
    for at, model, *numbers in session.execute(rows.group_by("bucket", table.model).order_by(table.model)):
        group = model if query.by_model else None
        sums = Sums(*map(int, numbers))
        before = found[int(at)].get(group)
        found[int(at)][group] = sums if before is None else before + sums
    buckets = [Bucket(at, at + seconds, list(found[at].items())) for at in starts]
    return buckets, until if until < end else None
