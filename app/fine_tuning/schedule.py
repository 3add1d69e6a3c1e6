"""A job's schedule: its batches, and the steps at which the adapter is evaluated and saved to be served.

The dry run counts by it and the trainer follows it.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache


class Schedule:
    """The steps of a job, which count from 1."""

    def __init__(
        self, examples: int, *, n_epochs: int, batch_size: int, checkpoint_steps: int | None
    ) -> None:
        self.steps_per_epoch = math.ceil(examples / batch_size)
        self.total_steps = n_epochs * self.steps_per_epoch
        self.epoch_ends = self._every(self.steps_per_epoch)
        """Steps after which the adapter is evaluated on every validation example."""
        self.checkpoints = self.epoch_ends | self._every(checkpoint_steps or self.steps_per_epoch)
        """Steps after which a checkpoint is saved that can be served."""
        self.evaluations = self.checkpoints | self._every(max(5, math.ceil(self.total_steps / 10)))
        """Steps after which the adapter is evaluated on a few validation examples."""

    def _every(self, interval: int) -> frozenset[int]:
        return frozenset(range(interval, self.total_steps + 1, interval))


@lru_cache(maxsize=1)
def epoch_batches(examples: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return one epoch's batches of example numbers, a function of the seed and the epoch only.

    They are shuffled freely and not grouped by length, because packing leaves no padding to save.
    """
    order = list(range(examples))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - order, not secrecy
    return [order[start : start + batch_size] for start in range(0, examples, batch_size)]
