"""The memory that processes take."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import psutil


def resident_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the resident memory of the processes together, in bytes; those that have ended take none."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total
