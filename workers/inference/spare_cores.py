"""Chooses the engine's number of threads: as many as there are cores that no other process uses.

OpenMP's threads spin for a moment while they wait for work, since waking a sleeping thread takes longer than
most pieces of work do. On two idle cores that makes mixed batches twice as fast. Beside any other process,
however, threads wait for each other: in each of a model's hundreds of parallel pieces, one of them may first
have to get its core back. A prompt that takes 50 ms on two idle cores, and 60 on one, then takes 180 on two,
even if the other process is nice.
"""

from __future__ import annotations

import os
import time
from typing import cast

import psutil

THREADS = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "10000",
    "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1",
}
"""Environment variables with which threads spin for about 0.2 ms, then sleep, and compiled kernels use as
many threads as are set at that moment. GNU's OpenMP, which torch ships, reads the first two:
https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html"""
_SAMPLE_SECONDS = 1.0
_NEGLIGIBLE = 0.3
"""The part of a core that others may use while it counts as free: about what answering requests takes."""


class SpareCores:
    """Measures, at most once a second, how many cores the machine's other processes use."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._mine = psutil.Process()
        self._sampled_at, self._others, self._own = self._sample()
        self._spare = most

    def count(self) -> int:
        """Returns the number of cores, at least 1, that are free for this process."""
        if time.monotonic() - self._sampled_at >= _SAMPLE_SECONDS:
            before = self._sampled_at, self._others, self._own
            self._sampled_at, self._others, self._own = self._sample()
            seconds = self._sampled_at - before[0]
            used_by_others = (self._others - before[1] - (self._own - before[2])) / seconds
            self._spare = max(1, min(self._most, int(self._most - used_by_others + _NEGLIGIBLE)))
        return self._spare

    def _sample(self) -> tuple[float, float, float]:
        """Returns the time, and the CPU seconds used so far by all processes and by this one."""
        cores = psutil.cpu_times(percpu=True)
        all_busy = sum(
            cores[core].user + cores[core].nice + cores[core].system
            for core in os.sched_getaffinity(0)
            if core < len(cores)
        )
        own = self._mine.cpu_times()
        return time.monotonic(), cast(float, all_busy), own.user + own.system
