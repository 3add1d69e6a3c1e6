"""The curves of the jobs that a process was asked about last: steps that are recorded never change."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from app.core.database import Database

if TYPE_CHECKING:
    from app.console.jobs.curves import Curves

_KEPT_NUMBERS = 16_000_000
"""The most numbers that are kept, eight bytes each; the jobs asked about last stay."""


class CurveCache:
    """The curves of the jobs that a process was asked about last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Curves] = OrderedDict()
        self._reading: WeakValueDictionary[str, _Reading] = WeakValueDictionary()
        self._lock = Lock()

    @property
    def kept(self) -> list[str]:
        """The ids of the jobs that it holds, the one asked about last at the end."""
        return list(self._kept)

    def read(self, database: Database, job_id: str) -> Curves:
        """Return the job's curves as its log has them now. Whether the caller may see the job was checked."""
        from app.console.jobs.curves import Curves  # noqa: PLC0415 - numpy, which the start does without

        with self._lock:
            reading = self._reading.setdefault(job_id, _Reading())
        with reading.lock:  # who asks for the same job meanwhile waits, and finds it read
            with self._lock:
                known = self._kept.get(job_id) or Curves()
            curves = known.read_on(database, job_id)
            with self._lock:
                self._keep(job_id, curves)
        return curves

    def _keep(self, job_id: str, curves: Curves) -> None:
        self._kept[job_id] = curves
        self._kept.move_to_end(job_id)
        size = sum(each.size for each in self._kept.values())
        while size > _KEPT_NUMBERS and len(self._kept) > 1:
            size -= self._kept.popitem(last=False)[1].size


class _Reading:
    """Who reads the log of one job."""

    def __init__(self) -> None:
        self.lock = Lock()
