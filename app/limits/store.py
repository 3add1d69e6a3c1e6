"""Where it is counted what was used of quotas: in this process's memory, if it is the only gateway."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from typing_extensions import override

from app.limits import quota as quotas
from app.limits.quota import ExhaustedError, Quota, Taken


class Store(ABC):
    """Counts what was used of quotas."""

    @abstractmethod
    async def take(self, wanted: Sequence[tuple[Quota, int]]) -> Sequence[Taken]:
        """Take these amounts of quotas, or nothing.

        Raises:
            ExhaustedError: one of them has no room.
        """

    @abstractmethod
    async def give_back(self, taken: Sequence[tuple[Taken, int]]) -> None:
        """Give so much of what was taken back, unless its minute is over; less than 0 takes more.

        Raises:
            SQLAlchemyError: the store is in a database that is away.
        """

    @abstractmethod
    async def run(self) -> None:
        """Do whatever is to be done regularly, until cancelled."""


class MemoryStore(Store):
    """The store of the only gateway; nothing interrupts its methods."""

    def __init__(self) -> None:
        self._windows: dict[str, tuple[float, int]] = {}
        """By quota: when its minute ends (monotonic seconds), and what was used in it."""

    @override
    async def take(self, wanted: Sequence[tuple[Quota, int]]) -> Sequence[Taken]:
        now = time.monotonic()
        taken: list[Taken] = []
        for quota, amount in wanted:
            ends_at, used = self._windows.get(quota.name, (0.0, 0))
            if quota.kind == "concurrent_requests":
                ends_at = now
            elif ends_at <= now:
                ends_at, used = now + quotas.WINDOW_SECONDS, 0
            if used + amount > quota.most:
                raise ExhaustedError(quota, amount, used, ends_at - now)
            taken.append(Taken(quota, amount, used + amount, ends_at - now, ends_at))
        for each in taken:
            self._windows[each.quota.name] = each.window, each.used
        return taken

    @override
    async def give_back(self, taken: Sequence[tuple[Taken, int]]) -> None:
        for each, amount in taken:
            ends_at, used = self._windows.get(each.quota.name, (0.0, 0))
            if each.quota.kind == "concurrent_requests" or ends_at == each.window:
                self._windows[each.quota.name] = ends_at, used - amount

    @override
    async def run(self) -> None:
        """There is nothing to do: the quotas are few, and each has one entry."""
