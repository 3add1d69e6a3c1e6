"""Reads usage in buckets: the sums, and the entries that are not folded into them yet."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from typing import Any

from sqlalchemy import SelectBase, and_, func, null, or_, select, union_all
from sqlalchemy.orm import Session

from app.core.errors import InvalidRequestError
from app.usage.models import KEYS, SUMS, AliasUsage, Bucket, Group, KeyUsage, Sums, Table, Usage, UsageEntry
from app.usage.schemas import GroupBy, UsageQuery

_BUCKET_SECONDS = {"1m": 60, "1h": 3600, "1d": 86400}
_GROUPS: tuple[GroupBy, ...] = ("project_id", "model", "api_key_id")
_DEFAULT_BUCKETS = {"1m": 60, "1h": 24, "1d": 7}
_MOST_BUCKETS = {"1m": 1440, "1h": 168, "1d": 31}


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
    seconds = _BUCKET_SECONDS[width]
    first = start // seconds * seconds
    starts = range(first, end, seconds)[: query.limit or _DEFAULT_BUCKETS[width]]
    until = starts[-1] + seconds
    table = _table(query, group_by)
    # One statement sees an entry either before or after it was folded.
    parts = [_select_used(each, table, query, project_ids, first, until) for each in (table, UsageEntry)]
    used = union_all(*parts).subquery().c
    bucket = (used.minute - used.minute % seconds).label("bucket")
    groups = [used[name] if name in group_by else null() for name in _GROUPS]
    sums = [func.sum(used[name]) for name in SUMS]
    rows = select(bucket, *groups, *sums).group_by("bucket", *(used[name] for name in sorted(group_by)))
    found: defaultdict[int, list[tuple[Group, Sums]]] = defaultdict(list)
    for row in session.execute(rows):
        at, project_id, model, key_id, *numbers = tuple[Any, ...](row)
        found[int(at)].append((Group(project_id, model, key_id or None), Sums(*map(int, numbers))))
    buckets = [Bucket(at, at + seconds, sorted(found[at], key=_by_name)) for at in starts]
    return buckets, until if until < end else None


def sum_by_alias(
    session: Session, project_id: str, since: Mapping[str, float]
) -> Mapping[str, Mapping[str, Sums]]:
    """Return what each model was asked by each alias, from the first whole minute of a time on.

    Args:
        session: a transaction.
        project_id: the project.
        since: that time (seconds since the epoch) of each alias.
    """
    if not since:
        return {}

    def select_used(source: type[AliasUsage] | type[UsageEntry]) -> SelectBase:
        spans = (
            and_(source.alias == alias, source.minute >= math.ceil(start / 60) * 60)
            for alias, start in since.items()
        )
        columns = (getattr(source, name) for name in ("alias", "model", *SUMS))
        return select(*columns).where(source.project_id == project_id, or_(*spans))

    used = union_all(select_used(AliasUsage), select_used(UsageEntry)).subquery().c
    rows = select(used.alias, used.model, *(func.sum(used[name]) for name in SUMS))
    found: defaultdict[str, dict[str, Sums]] = defaultdict(dict)
    for row in session.execute(rows.group_by(used.alias, used.model)):
        alias, model, *numbers = tuple[Any, ...](row)
        found[alias][model] = Sums(*map(int, numbers))
    return found


def _select_used(
    source: Table | type[UsageEntry],
    table: Table,
    query: UsageQuery,
    project_ids: Sequence[str] | None,
    first: int,
    until: int,
) -> SelectBase:
    """Select the columns of `table` from it or from the entries, of what is asked for."""
    columns = [getattr(source, name) for name in (*KEYS[table], *SUMS)]
    rows = select(*columns).where(source.minute >= first, source.minute < until)
    only = {
        "project_id": project_ids,
        "model": query.only_models or None,
        "alias": query.only_aliases or None,
        "api_key_id": query.only_keys or None,
    }
    for name, values in only.items():
        if values is not None:
            rows = rows.where(getattr(source, name).in_(values))
    return rows


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
