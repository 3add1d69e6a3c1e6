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


def checkpoint_interval(save_seconds: float, longest: float) -> float:
    """Return the time between two checkpoints, in seconds.

    Saving costs at most 1 % of the time, and at most `longest` seconds of work are lost. Where a save takes
    so long that both cannot be had, neither is given up for the other: the interval is their geometric mean.
    That is Young's optimum, √(2 · save · time between failures), for a machine that fails every
    50 · `longest` seconds (after 50 minutes, for a minute), at which losing `longest` / 2 costs 1 %, too.

    J. W. Young, A first order approximation to the optimum checkpoint interval, 1974,
    https://doi.org/10.1145/361147.361115; J. T. Daly, A higher order estimate of the optimum checkpoint
    interval for restart dumps, 2006, https://doi.org/10.1016/j.future.2004.11.016, whose higher terms change
    nothing where a save is so much shorter than the time between failures.
    """
    affordable = save_seconds / _SHARE
    if affordable > longest:
        return math.sqrt(affordable * longest)
    return max(affordable, min(_SHORTEST, longest))


class CheckpointTimer:
    """Says when a checkpoint is due, by how long the attempt's earlier ones took on average."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._saves, self._save_seconds = 0, 0.0
        self._saved_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last checkpoint is old enough for a new one."""
        average = self._save_seconds / self._saves if self._saves else 0.0
        return time.monotonic() - self._saved_at >= checkpoint_interval(average, self._longest)

    @contextmanager
    def saving(self) -> Generator[None]:
        """Time the block, which saves a checkpoint."""
        began = time.monotonic()
        yield
        self._saved_at = time.monotonic()
        self._saves += 1
        self._save_seconds += self._saved_at - began
