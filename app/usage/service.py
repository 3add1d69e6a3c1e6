"""Rules on usage: how it is added up, and how it is shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import astuple

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.errors import InvalidRequestError
from app.usage.models import Bucket, Key, Sums, Usage

BUCKET_SECONDS = {"1m": 60, "1h": 3600, "1d": 86400}
DAYS_OF_MINUTES = 90
"""Older usage is kept by the day: it stands at the day's first minute."""
_DEFAULT_BUCKETS = {"1m": 60, "1h": 24, "1d": 7}
_MOST_BUCKETS = {"1m": 1440, "1h": 168, "1d": 31}


def add_usage(session: Session, counted: Mapping[Key, Sums]) -> None:
    """Adds to the sums, in one statement that other processes may run at the same time."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    rows = [
        {"project_id": project_id, "minute": minute, "model": model}
        | dict(zip(("requests", "input_tokens", "output_tokens"), astuple(sums), strict=True))
        # In one order everywhere, or two processes could wait for each other's rows.
        for (project_id, minute, model), sums in sorted(counted.items(), key=lambda item: item[0])
    ]
    statement = insert(Usage)
    added = statement.excluded
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[Usage.project_id, Usage.minute, Usage.model],
            set_={
                "requests": Usage.requests + added.requests,
                "input_tokens": Usage.input_tokens + added.input_tokens,
                "output_tokens": Usage.output_tokens + added.output_tokens,
            },
        ),
        rows,
    )


def fold_oldest_day(session: Session, now: float) -> bool:
    """Adds the minutes of one day into that day's first, once they are too old to be kept.

    Any number of processes may do it at once: each row is taken away, and so counted, by one of them.

    Returns:
        False: there is no such day (any more).
    """
    day_seconds = BUCKET_SECONDS["1d"]
    too_old = (int(now) // day_seconds - DAYS_OF_MINUTES) * day_seconds
    unfolded = select(func.min(Usage.minute)).where(Usage.minute < too_old, Usage.minute % day_seconds != 0)
    minute = session.scalar(unfolded)
    if minute is None:
        return False
    day = minute // day_seconds * day_seconds
    columns = (Usage.project_id, Usage.model, Usage.requests, Usage.input_tokens, Usage.output_tokens)
    minutes = delete(Usage).where(Usage.minute > day, Usage.minute < day + day_seconds)
    sums: defaultdict[Key, Sums] = defaultdict(lambda: Sums(0, 0, 0))
    for project_id, model, *numbers in session.execute(minutes.returning(*columns)):
        sums[project_id, day, model] += Sums(*numbers)
    if sums:
        add_usage(session, sums)
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
    limit: int | None,
) -> tuple[Sequence[Bucket], int | None]:
    """The project's usage from `start` until before `end`, bucket by bucket, the empty ones too.

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
    bucket = (Usage.minute - Usage.minute % seconds).label("bucket")
    query = select(
        bucket,
        Usage.model,
        func.sum(Usage.requests),
        func.sum(Usage.input_tokens),
        func.sum(Usage.output_tokens),
    ).where(Usage.project_id == project_id, Usage.minute >= first, Usage.minute < until)
    if models:
        query = query.where(Usage.model.in_(models))
    found: defaultdict[int, dict[str | None, Sums]] = defaultdict(dict)
    for at, model, *numbers in session.execute(query.group_by("bucket", Usage.model).order_by(Usage.model)):
        group = model if by_model else None
        sums = Sums(*map(int, numbers))
        before = found[int(at)].get(group)
        found[int(at)][group] = sums if before is None else before + sums
    buckets = [Bucket(at, at + seconds, list(found[at].items())) for at in starts]
    return buckets, until if until < end else None
