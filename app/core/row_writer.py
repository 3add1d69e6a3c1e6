"""Gathers rows that many tasks write at once into few transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Row = dict[str, Any]


class RowWriter:
    """Writes rows together: while one transaction runs, rows are collected for the next."""

    def __init__(self, write: Callable[[list[Row]], Awaitable[None]]) -> None:
        self._write = write
        self._pending: list[Row] = []
        self._lock = asyncio.Lock()

    async def add(self, row: Row) -> None:
        """Write a row, and return once it is written; raises what `write` raises."""
        self._pending.append(row)
        async with self._lock:
            if any(pending is row for pending in self._pending):  # else it was written with those before
                rows, self._pending = self._pending, []
                try:
                    await self._write(rows)
                except BaseException:
                    self._pending = rows + self._pending  # so that every task whose row this is raises
                    raise
