"""Rows that many write at once, put into the database together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Row = dict[str, Any]


class Ledger:
    """While one transaction runs, rows gather for the next."""

    def __init__(self, write: Callable[[list[Row]], Awaitable[None]]) -> None:
        self._write = write
        self._gathered: list[Row] = []
        self._writing = asyncio.Lock()

    async def add(self, row: Row) -> None:
        """Returns once the row is written; raises what `write` raises."""
        self._gathered.append(row)
        async with self._writing:
            if any(each is row for each in self._gathered):  # else the one before has taken it along
                rows, self._gathered = self._gathered, []
                await self._write(rows)
