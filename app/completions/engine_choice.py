"""Which base models have an engine on a machine that has memory for some of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

SETTLED_SECONDS = 60.0
"""An engine that was asked within this time is not stopped to make room for another."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A base model that could have an engine."""

    base_model: str
    engine_bytes: int
    """The memory that its engine takes."""
    idle_seconds: float = math.inf
    """The time since it was last asked for."""
    has_unverified: bool = False
    """Whether it has models that wait to be compared with an engine's answers."""
    is_default: bool = False
    """Whether it has an engine even if nobody asks, as long as there is room."""

    def is_wanted(self, idle_limit: float) -> bool:
        """Return whether it shall have an engine if there is room; `idle_limit` is in seconds."""
        return self.is_default or self.has_unverified or self.idle_seconds < idle_limit


def choose_engines(
    candidates: Sequence[Candidate], running: Collection[str], idle_limit: float, memory_bytes: int
) -> list[str]:
    """Return the base models that shall have an engine, the most urgent first.

    At least one of those that are wanted has one, however large it is.

    Args:
        candidates: all base models that can be served on this machine.
        running: those that have an engine now.
        idle_limit: the seconds without a request after which a base is not wanted, unless it is the default
            or has models to compare.
        memory_bytes: the memory for all engines together.
    """

    def urgency(candidate: Candidate) -> tuple[bool, float]:
        is_settled = candidate.base_model in running and candidate.idle_seconds < SETTLED_SECONDS
        return not is_settled, candidate.idle_seconds

    wanted = [each for each in candidates if each.is_wanted(idle_limit)]
    chosen: list[str] = []
    left = memory_bytes
    for candidate in sorted(wanted, key=urgency):
        if candidate.engine_bytes <= left or not chosen:
            chosen.append(candidate.base_model)
            left -= candidate.engine_bytes
    return chosen
