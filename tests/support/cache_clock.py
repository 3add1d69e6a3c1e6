"""The clock by which caches of what is in the database go."""

from __future__ import annotations

import time

MOVES = 2.0
"""Within so many seconds, every process knows where an alias leads, and which models are bad."""
CHANGES = 3.0
"""Within so many seconds, every process knows of changed keys and limits."""


class CacheClock:
    """Stands still unless a test says that time passes, however busy the machine is."""

    def __init__(self) -> None:
        self._now = time.monotonic()

    def monotonic(self) -> float:
        return self._now

    def pass_time(self, seconds: float) -> None:
        self._now += seconds
