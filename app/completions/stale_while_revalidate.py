"""Answers of the database that may be a moment old, so that a busy caller costs no query."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from anyio import to_thread

_MOST = 10_000

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class StaleWhileRevalidate(Generic[K, V]):
    """What `look_up` answered in the last seconds. It runs in a thread, once at a time for a key.

    An answer that is not fresh any more is still given but looked up again meanwhile, so whatever has changed
    is used for the stale seconds at most, and a steady caller never waits. Errors are not kept.
    """

    def __init__(self, look_up: Callable[[K], V], *, fresh_seconds: float, stale_seconds: float) -> None:
        self._look_up = look_up
        self._fresh_seconds = fresh_seconds
        self._stale_seconds = stale_seconds
        self._known: dict[K, tuple[V, float]] = {}
        self._pending: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K) -> V:
        """The value; raises what `look_up` raises."""
        known = self._known.get(key)
        if known is not None:
            value, looked_up_at = known
            age = time.monotonic() - looked_up_at
            if age < self._fresh_seconds:
                return value
            if age < self._stale_seconds:
                self._renew(key)
                return value
        return await asyncio.shield(self._renew(key))  # others may wait for it too

    async def look_up_now(self, key: K) -> V:
        """The value as it is now, whatever is remembered; raises what `look_up` raises."""
        self._known.pop(key, None)
        return await to_thread.run_sync(self._look_up, key)

    def _renew(self, key: K) -> asyncio.Task[V]:
        task = self._pending.get(key)
        if task is None:
            task = self._pending[key] = asyncio.create_task(self._ask(key))
            task.add_done_callback(_retrieve)
        return task

    async def _ask(self, key: K) -> V:
        asked_at = time.monotonic()
        try:
            value = await to_thread.run_sync(self._look_up, key)
        except BaseException:
            self._known.pop(key, None)
            raise
        finally:
            del self._pending[key]
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[key] = value, asked_at
        return value


def _retrieve(task: asyncio.Task[V]) -> None:
    """Nobody may be waiting: then its error is nobody's, and nothing to warn of."""
    if not task.cancelled():
        task.exception()
