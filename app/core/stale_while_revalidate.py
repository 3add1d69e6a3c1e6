"""A cache that returns slightly stale values while it revalidates them (RFC 5861's idea)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from anyio import CapacityLimiter, to_thread

_MAX_ENTRIES = 10_000

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class StaleWhileRevalidate(Generic[K, V]):
    """Caches what `look_up` returns. It runs in a thread, at most once at a time for each key.

    A value that is no longer fresh is returned once more while it is looked up again, so that a steady caller
    never waits; after the stale seconds a caller waits for the new value. Errors are not cached. A limiter
    bounds the threads that are used at once.
    """

    def __init__(
        self,
        look_up: Callable[[K], V],
        *,
        fresh_seconds: float,
        stale_seconds: float,
        limiter: CapacityLimiter | None = None,
    ) -> None:
        self._look_up = look_up
        self._limiter = limiter
        self._fresh_seconds = fresh_seconds
        self._stale_seconds = stale_seconds
        self._cached: dict[K, tuple[V, float]] = {}
        self._pending: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K) -> V:
        """Returns the value, or raises what `look_up` raises."""
        cached = self._cached.get(key)
        if cached is not None:
            value, looked_up_at = cached
            age = time.monotonic() - looked_up_at
            if age < self._fresh_seconds:
                return value
            if age < self._stale_seconds:
                self._revalidate(key)
                return value
        return await asyncio.shield(self._revalidate(key))  # other callers may wait for the same task

    async def look_up_now(self, key: K) -> V:
        """Bypasses the cache and returns the current value, or raises what `look_up` raises."""
        self._cached.pop(key, None)
        return await to_thread.run_sync(self._look_up, key, limiter=self._limiter)

    def _revalidate(self, key: K) -> asyncio.Task[V]:
        task = self._pending.get(key)
        if task is None:
            task = self._pending[key] = asyncio.create_task(self._ask(key))
            task.add_done_callback(_retrieve)
        return task

    async def _ask(self, key: K) -> V:
        asked_at = time.monotonic()
        try:
            value = await to_thread.run_sync(self._look_up, key, limiter=self._limiter)
        except BaseException:
            self._cached.pop(key, None)
            raise
        finally:
            del self._pending[key]
        if len(self._cached) >= _MAX_ENTRIES:
            self._cached.clear()
        self._cached[key] = value, asked_at
        return value


def _retrieve(task: asyncio.Task[V]) -> None:
    """Marks the task's error as seen, so that asyncio does not warn when nobody waits for the task."""
    if not task.cancelled():
        task.exception()
