"""The traffic of aliases: how it is to be shared, and how it was."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.console.model_pages.lineage import share_of
from app.models.aliases.models import Alias
from app.usage import service as usage_service
from app.usage.schemas import UsageQuery

_DAY_SECONDS = 86400
_COLOURS = 3
"""The models of a chart that have a colour and a pattern of their own."""


@dataclass(frozen=True, slots=True)
class ModelTraffic:
    """A model of an alias: its part as configured, and what it was asked."""

    model: str
    configured: float | None
    """None for a model that the alias does not point to any more."""
    requests: int
    measured: float | None
    """Its part of all requests; None if there were none."""


@dataclass(frozen=True, slots=True)
class AliasTraffic:
    """An alias with what was asked of it since it was moved, or for a day."""

    alias: Alias
    since: float
    models: Sequence[ModelTraffic]

    @property
    def requests(self) -> int:
        """All requests that named the alias."""
        return sum(each.requests for each in self.models)

    @property
    def is_since_move(self) -> bool:
        """Whether it is counted from the alias's last move on."""
        return self.since == self.alias.updated_at


def measure(session: Session, project_id: str, aliases: Sequence[Alias]) -> Sequence[AliasTraffic]:
    """Return the traffic of aliases, in their order; usage is known by the minute, and a few seconds old."""
    a_day_ago = time.time() - _DAY_SECONDS
    since = {alias.name: max(alias.updated_at, a_day_ago) for alias in aliases}
    found = usage_service.sum_by_alias(session, project_id, since)
    return [
        AliasTraffic(
            alias,
            since[alias.name],
            _models(alias, {model: sums.requests for model, sums in found.get(alias.name, {}).items()}),
        )
        for alias in aliases
    ]


def _models(alias: Alias, requests: Mapping[str, int]) -> Sequence[ModelTraffic]:
    whole = sum(requests.values())
    configured = [share["model"] for share in alias.split]
    return [
        ModelTraffic(
            model,
            share_of(alias, model) if model in configured else None,
            requests.get(model, 0),
            requests.get(model, 0) / whole if whole else None,
        )
        for model in dict.fromkeys([*configured, *sorted(requests)])
    ]


@dataclass(frozen=True, slots=True)
class Segment:
    """A model's part of a bar: the model's place in the chart, and where it begins and how high it is."""

    place: int
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """An hour of a chart."""

    start: int
    parts: Sequence[int]
    """The requests by model, in the order of the chart's models."""

    @property
    def requests(self) -> int:
        """All requests of the hour."""
        return sum(self.parts)

    def segments(self, highest: int, height: float) -> Iterator[Segment]:
        """Yield what is drawn, in a picture of that height, whose highest bar has so many requests."""
        bottom = height
        for place, requests in enumerate(self.parts):
            if requests:
                part = height * requests / highest
                bottom -= part
                yield Segment(place, bottom, part)


@dataclass(frozen=True, slots=True)
class DayOfTraffic:
    """What an alias was asked in each of the last 24 hours, by model."""

    models: Sequence[str]
    """Those that were asked most, then one that stands for all others if there are any."""
    bars: Sequence[Bar]

    @property
    def highest(self) -> int:
        """The requests of the busiest hour, at least 1."""
        return max([1, *(bar.requests for bar in self.bars)])

    @property
    def requests(self) -> int:
        """The requests of all hours."""
        return sum(bar.requests for bar in self.bars)

    def of_model(self, place: int) -> int:
        """Return the requests to one of the models."""
        return sum(bar.parts[place] for bar in self.bars)


def last_day(session: Session, project_id: str, alias: str) -> DayOfTraffic:
    """Return the last 24 hours of an alias."""
    query = UsageQuery(
        start_time=int(time.time()) - 23 * 3600,
        bucket_width="1h",
        aliases=[alias],
        group_by=["model"],
        limit=24,
    )
    buckets, _ = usage_service.list_buckets(session, query, project_ids=[project_id], group_by={"model"})
    hours = [
        (bucket.start, Counter({group.model or "": sums.requests for group, sums in bucket.results}))
        for bucket in buckets
    ]
    asked = sum((counts for _, counts in hours), Counter[str]())
    shown = [model for model, _ in asked.most_common(_COLOURS)]
    has_others = len(asked) > len(shown)
    bars = [Bar(start, _parts(counts, shown, has_others=has_others)) for start, counts in hours]
    return DayOfTraffic([*shown, *(["other models"] if has_others else [])], bars)


def _parts(counts: Counter[str], shown: Sequence[str], *, has_others: bool) -> Sequence[int]:
    own = [counts[model] for model in shown]
    return [*own, counts.total() - sum(own)] if has_others else own
