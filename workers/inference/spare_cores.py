"""How many threads the engine should compute with: as many as there are cores that nobody else uses.

OpenMP's threads wait for their next piece of work by spinning for a moment, for to wake a sleeping one takes
longer than most pieces do: on two idle cores that makes mixed batches twice as fast. Beside a trainer that
wants all cores, spinning threads wait for each other instead, and the engine is several times slower than
with one thread, which waits for none.
"""

from __future__ import annotations

import os
import time
from typing import cast

import psutil

SPINNING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
"""For the engine's environment: some 0.2 ms, then sleep. GNU's OpenMP, which torch brings, reads both:
https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html"""
_LOOK_SECONDS = 1.0


class SpareCores:
    """Looks at what the machine's other processes use, at most once a second."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._mine = psutil.Process()
        self._looked_at, self._others, self._own = self._look()
        self._spare = most

    def count(self) -> int:
        """Cores for this process, of those that it may use; 1 at least."""
        if time.monotonic() - self._looked_at >= _LOOK_SECONDS:
            before = self._looked_at, self._others, self._own
            self._looked_at, self._others, self._own = self._look()
            seconds = self._looked_at - before[0]
            used_by_others = (self._others - before[1] - (self._own - before[2])) / seconds
            self._spare = max(1, min(self._most, round(self._most - used_by_others)))
        return self._spare

    def _look(self) -> tuple[float, float, float]:
        """Now, and the seconds that all processes and this one have computed so far, on this one's cores."""
        cores = psutil.cpu_times(percpu=True)
        all_busy = sum(
            cores[core].user + cores[core].nice + cores[core].system
            for core in os.sched_getaffinity(0)
            if core < len(cores)
        )
        own = self._mine.cpu_times()
        return time.monotonic(), cast(float, all_busy), own.user + own.system
