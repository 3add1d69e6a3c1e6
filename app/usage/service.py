"""Usage: adding it to the database, folding what is old, and reading it in buckets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import astuple
from typing import Any

from sqlalchemy import delete, func, null, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.auth.models import Project
from app.core.errors import InvalidRequestError
from app.usage.models import AliasUsage, Bucket, Group, Key, KeyUsage, Sums, Table, Usage
from app.usage.schemas import GroupBy, UsageQuery

BUCKET_SECONDS = {"1m": 60, "1h": 3600, "1d": 86400}
DAYS_OF_MINUTES = 90
"""Usage that is older than this many days is kept by the day, in the day's first minute."""
_KEYS: dict[Table, tuple[str, ...]] = {
    Usage: ("project_id", "minute", "model"),
    AliasUsage: ("project_id", "minute", "model", "alias"),
    KeyUsage: ("project_id", "minute", "model", "api_key_id"),
}
_GROUPS: tuple[GroupBy, ...] = ("project_id", "model", "api_key_id")
_SUMS = ("requests", "input_tokens", "output_tokens")
_DEFAULT_BUCKETS = {"1m": 60, "1h": 24, "1d": 7}
_MOST_BUCKETS = {"1m": 1440, "1h": 168, "1d": 31}


def add_usage(session: Session, counted: Mapping[Key, Sums], table: Table = Usage) -> None:
    """Add to the sums, in one statement that other processes may run at the same time.

    What deleted projects have used is dropped.
    """
    projects = select(Project.id).where(Project.id.in_({project_id for project_id, *_ in counted}))
    there = set(session.scalars(projects.with_for_update(read=True, key_share=True)))
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    columns = (*_KEYS[table], *_SUMS)
    rows: list[dict[str, Any]] = [
        dict(zip(columns, (*key, *astuple(sums)), strict=True))
        # Sorted, since two processes that lock rows in different orders could wait for each other.
        for key, sums in sorted(counted.items(), key=lambda item: item[0])
        if key[0] in there
    ]
    if not rows:
        return
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


def list_buckets(
    session: Session, query: UsageQuery, *, project_ids: Sequence[str] | None, group_by: Set[GroupBy]
) -> tuple[Sequence[Bucket], int | None]:
    """Return the usage of these projects, or of all, bucket by bucket, the empty ones too.

    Buckets begin at whole minutes, hours and days (UTC), so the first may begin before `query.start`.

    Returns:
        The buckets, and where the next page starts; None after the last.

    Raises:
        InvalidRequestError: the query's end is not after its start, it asks for too many buckets, or for
            what is not known.
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
    table = _table(query, group_by)
    bucket = (table.minute - table.minute % seconds).label("bucket")
    groups = [getattr(table, name) if name in group_by else null() for name in _GROUPS]
    sums = [func.sum(getattr(table, name)) for name in _SUMS]
    rows = select(bucket, *groups, *sums).where(table.minute >= first, table.minute < until)
    if project_ids is not None:
        rows = rows.where(table.project_id.in_(project_ids))
    if query.only_models:
        rows = rows.where(table.model.in_(query.only_models))
    if query.only_aliases:
        rows = rows.where(AliasUsage.alias.in_(query.only_aliases))
    if query.only_keys:
        rows = rows.where(KeyUsage.api_key_id.in_(query.only_keys))
    by = [getattr(table, name) for name in sorted(group_by)]
    found: defaultdict[int, list[tuple[Group, Sums]]] = defaultdict(list)
    for row in session.execute(rows.group_by("bucket", *by)):
        at, project_id, model, key_id, *numbers = tuple[Any, ...](row)
        found[int(at)].append((Group(project_id, model, key_id or None), Sums(*map(int, numbers))))
    buckets = [Bucket(at, at + seconds, sorted(found[at], key=_by_name)) for at in starts]
    return buckets, until if until < end else None


def _table(query: UsageQuery, group_by: Set[GroupBy]) -> Table:
    """Return the table that has what is asked for."""
    by_key = bool(query.only_keys or "api_key_id" in group_by)
    if by_key and query.only_aliases:
        raise InvalidRequestError(
            "Usage is known by alias or by key, not by both. Leave out 'aliases' or the keys.",
            code="invalid_value",
            param="aliases",
        )
    if query.only_aliases:
        return AliasUsage
    return KeyUsage if by_key else Usage


def _by_name(result: tuple[Group, Sums]) -> tuple[str, str, str]:
    group, _ = result
    return group.project_id or "", group.model or "", group.api_key_id or ""
