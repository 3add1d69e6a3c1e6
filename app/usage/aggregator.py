"""Adds usage up in memory and writes the sums every few seconds, so that no request waits for it.

A process that is killed loses what it counted since it last wrote: a few seconds of usage, never a request.
"""

from __future__ import annotations

import time

from typing_extensions import override

from app.core.database import Database
from app.core.periodic_writer import PeriodicWriter
from app.usage import service
from app.usage.models import AliasUsage, Key, KeyUsage, Sums, Table, Usage

SumsByTable = dict[Table, dict[Key, Sums]]


class UsageAggregator(PeriodicWriter[SumsByTable]):
    """The usage that this process has counted and not yet written."""

    _seconds = 3.0
    _what = "usage"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unwritten: SumsByTable = {}

    def count(
        self,
        project_id: str,
        model: str,
        input_tokens: int,
        output_tokens: int,
        *,
        alias: str | None,
        key_id: str = "",
    ) -> None:
        """Count one answered request.

        `alias` is the alias that it named, if it named one; `key_id` the key that it came with, if it did.
        """
        key, sums = (project_id, int(time.time()) // 60 * 60, model), Sums(1, input_tokens, output_tokens)
        self._add(Usage, key, sums)
        self._add(KeyUsage, (*key, key_id), sums)
        if alias is not None:
            self._add(AliasUsage, (*key, alias), sums)

    @override
    def _take(self) -> SumsByTable:
        gathered, self._unwritten = self._unwritten, {}
        return gathered

    @override
    def _write(self, gathered: SumsByTable) -> None:
        with self._database.writer() as session:
            for table, rows in gathered.items():
                service.add_usage(session, rows, table)

    @override
    def _put_back(self, gathered: SumsByTable) -> None:
        for table, rows in gathered.items():
            for key, sums in rows.items():
                self._add(table, key, sums)

    def _add(self, table: Table, key: Key, sums: Sums) -> None:
        rows = self._unwritten.setdefault(table, {})
        before = rows.get(key)
        rows[key] = sums if before is None else before + sums
