"""When the next checkpoint is due: as soon as it is worth its cost."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import contextmanager

_SHARE = 0.01
"""The share of the time that saving checkpoints may cost."""
_SHORTEST = 5.0
"""No two checkpoints within an epoch are closer than this, in seconds: to lose less is worth nothing."""


def checkpoint_interval(save_seconds: float, longest: float, failure_seconds: float = math.inf) -> float:
    """Return the time between two checkpoints, in seconds.

    Saving costs at most 1 % of the time, and at most `longest` seconds of work are lost. Where a save takes
    so long that both cannot be had, the interval is their geometric mean. That is Young's optimum, √(2 · save
    · time between failures), for a machine that fails every 50 · `longest` seconds: every 50 minutes, for a
    minute. If it is known to fail so often (every `failure_seconds`) that Young's optimum is shorter, it is
    that, whatever its share of the time: saving costs less than the work that would be lost.

    J. W. Young, A first order approximation to the optimum checkpoint interval, 1974,
    https://doi.org/10.1145/361147.361115; J. T. Daly, A higher order estimate of the optimum checkpoint
    interval for restart dumps, 2006, https://doi.org/10.1016/j.future.2004.11.016, whose higher terms change
    little where a save is so much shorter than the time between failures.
    """
    affordable = save_seconds / _SHARE
    interval = affordable if affordable <= longest else math.sqrt(affordable * longest)
    optimum = math.sqrt(2 * save_seconds * failure_seconds) if save_seconds else 0.0
    return max(min(interval, optimum), min(_SHORTEST, longest))


class CheckpointTimer:
    """Says when a checkpoint is due, by how long the attempt's earlier ones took on average."""

    def __init__(self, longest: float, failure_seconds: float) -> None:
        self._longest = longest
        self._failure_seconds = failure_seconds
        self._saves, self._save_seconds = 0, 0.0
        self._saved_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last checkpoint is old enough for a new one."""
        average = self._save_seconds / self._saves if self._saves else 0.0
        interval = checkpoint_interval(average, self._longest, self._failure_seconds)
        return time.monotonic() - self._saved_at >= interval

    @contextmanager
    def saving(self) -> Generator[None]:
        """Time the block, which saves a checkpoint."""
        began = time.monotonic()
        yield
        self._saved_at = time.monotonic()
        self._saves += 1
        self._save_seconds += self._saved_at - began
