"""What a caller may use: one bound of one kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["requests", "tokens", "concurrent_requests"]
WINDOW_SECONDS = 60.0
"""Requests and tokens are counted by the minute, which begins with the first request after the last one."""


@dataclass(frozen=True, slots=True)
class Quota:
    """A bound, of which a project, a key, or either at one base model, may use so much."""

    name: str
    """Unique: the project or key, the base model, and the kind."""
    project_id: str
    kind: Kind
    most: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What a request has taken of a quota."""

    quota: Quota
    amount: int
    used: int
    """In the current minute, this request included; of concurrent requests, now."""
    seconds_left: float
    """Until the minute ends."""
    window: float
    """Which minute it is: its end by the clock of the store."""


class ExhaustedError(Exception):
    """A quota has no room for a request, which therefore has taken nothing of any."""

    def __init__(self, quota: Quota, amount: int, used: int, seconds_left: float) -> None:
        super().__init__(quota.name)
        self.quota = quota
        self.amount = amount
        self.used = used
        self.seconds_left = seconds_left


@dataclass(frozen=True, slots=True)
class Quotas:
    """All quotas that a key's requests are counted against."""

    of_all_models: Sequence[Quota]
    by_base_model: Mapping[str, Sequence[Quota]]

    def at(self, base_model: str) -> Sequence[Quota]:
        """Return those of a request to a base model, or to a model that was fine-tuned from it."""
        return [*self.of_all_models, *self.by_base_model.get(base_model, ())]
