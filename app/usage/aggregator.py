"""Adds usage up in memory and writes the sums every few seconds, so that no request waits for it.

A process that is killed loses what it counted since it last wrote: a few seconds of usage, never a request.
"""

from __future__ import annotations

import asyncio
import logging
import time

from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database
from app.usage import service
from app.usage.models import AliasUsage, Key, Sums, Table, Usage

log = logging.getLogger("toque.usage")

SumsByTable = dict[Table, dict[Key, Sums]]
_FLUSH_SECONDS = 3.0


class UsageAggregator:
    """The usage that this process has counted and not yet written; it belongs to the event loop's thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unwritten: SumsByTable = {}

    def count(
        self, project_id: str, model: str, input_tokens: int, output_tokens: int, *, alias: str | None
    ) -> None:
        """Count one answered request; `alias` is the alias that it named, if it named one."""
        key, sums = (project_id, int(time.time()) // 60 * 60, model), Sums(1, input_tokens, output_tokens)
        self._add(Usage, key, sums)
        if alias is not None:
            self._add(AliasUsage, (*key, alias), sums)

    async def run(self) -> None:
        """Write every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write the sums; if the database cannot be reached, they are kept for the next time."""
        unwritten, self._unwritten = self._unwritten, {}
        if not unwritten:
            return
        try:
            await to_thread.run_sync(self._write, unwritten)
        except SQLAlchemyError as error:
            log.warning("usage cannot be written yet: %s", type(error).__name__)
            for table, rows in unwritten.items():
                for key, sums in rows.items():
                    self._add(table, key, sums)

    def _add(self, table: Table, key: Key, sums: Sums) -> None:
        rows = self._unwritten.setdefault(table, {})
        before = rows.get(key)
        rows[key] = sums if before is None else before + sums

    def _write(self, unwritten: SumsByTable) -> None:
        with self._database.writer() as session:
            for table, rows in unwritten.items():
                service.add_usage(session, rows, table)
