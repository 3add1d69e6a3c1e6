"""What a project's models were asked, as bars by day."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.usage import service as usage_service
from app.usage.models import Sums
from app.usage.schemas import UsageQuery

_DAY = 86_400
_MOST_SERIES = 7
_WIDTH, _HEIGHT = 700.0, 200.0
_OTHERS = "all others"


@dataclass(frozen=True, slots=True)
class Bar:
    """The tokens of a model on a day, as a rectangle in a picture of 700 by 200."""

    series: int
    title: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Day:
    """A day (UTC), and what was used on it."""

    start: int
    tokens: int
    requests: int
    middle: float
    """Where it stands in the picture."""


@dataclass(frozen=True, slots=True)
class UsageByDay:
    """What was used, as a picture and as numbers."""

    days: Sequence[Day]
    models: Sequence[tuple[str, Sums]]
    """From the one with most tokens."""
    series: Sequence[str]
    """What the bars are of, from below: the first models, and all others."""
    bars: Sequence[Bar]
    top: int
    """The tokens at the upper edge of the picture."""


def read(session: Session, project_id: str, days: int) -> UsageByDay:
    """Return the usage of a project on the last days, today among them."""
    first = (int(time.time()) // _DAY - days + 1) * _DAY
    query = UsageQuery(start_time=first, bucket_width="1d", limit=days)
    buckets, _ = usage_service.list_buckets(session, query, project_ids=[project_id], group_by={"model"})
    totals: defaultdict[str, Sums] = defaultdict(lambda: Sums(0, 0, 0))
    by_day: list[tuple[int, dict[str, Sums]]] = []
    for bucket in buckets:
        used = {group.model or "": sums for group, sums in bucket.results}
        by_day.append((bucket.start, used))
        for model, sums in used.items():
            totals[model] += sums
    models = sorted(totals.items(), key=lambda each: (-_tokens(each[1]), each[0]))
    series = [model for model, _ in models[:_MOST_SERIES]]
    if len(models) > _MOST_SERIES:
        series.append(_OTHERS)
    top = max((sum(map(_tokens, used.values())) for _, used in by_day), default=0)
    step = _WIDTH / days
    return UsageByDay(
        [
            Day(
                start,
                sum(map(_tokens, used.values())),
                sum(sums.requests for sums in used.values()),
                (number + 0.5) * step,
            )
            for number, (start, used) in enumerate(by_day)
        ],
        models,
        series,
        [
            bar
            for number, (_, used) in enumerate(by_day)
            for bar in _bars(used, series, top, number * step + step * 0.15, step * 0.7)
        ],
        top,
    )


def _bars(used: Mapping[str, Sums], series: Sequence[str], top: int, x: float, width: float) -> list[Bar]:
    """Return the parts of a day's bar, from below."""
    parts = dict.fromkeys(series, 0)
    for model, sums in used.items():
        parts[model if model in parts else _OTHERS] += _tokens(sums)
    bars: list[Bar] = []
    bottom = _HEIGHT
    for number, (name, tokens) in enumerate(parts.items()):
        if tokens:
            height = tokens / top * _HEIGHT
            bottom -= height
            bars.append(Bar(number, f"{name}: {tokens:,} tokens", x, bottom, width, height))
    return bars


def _tokens(sums: Sums) -> int:
    return sums.input_tokens + sums.output_tokens
