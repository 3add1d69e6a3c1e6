"""Adds usage up in memory and writes the sums every few seconds, so that no request waits for it.

A process that is killed loses what it counted since it last wrote: a few seconds of usage, never a request.
"""

from __future__ import annotations

import time

from typing_extensions import override

from app.core.database import Database, new_id
from app.core.periodic_writer import PeriodicWriter
from app.usage.entries import Batch, append_batch
from app.usage.models import EntryKey, Sums


class UsageAggregator(PeriodicWriter[Batch]):
    """The usage that this process has counted and not yet written.

    Where it is not known whether a batch was written, since the connection broke, the same batch is written
    again before any other: the database knows its number. What is counted meanwhile is in the next.
    """

    _seconds = 3.0
    _what = "usage"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gateway_id = new_id("gateway_")
        self._counted: dict[EntryKey, Sums] = {}
        self._batch = Batch(self._gateway_id, 0, {})
        """The last batch that was begun."""
        self._written = 0
        """The number of the last batch that is known to be written."""

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
        key = EntryKey(project_id, int(time.time()) // 60 * 60, model, key_id, alias)
        sums, before = Sums(1, input_tokens, output_tokens), self._counted.get(key)
        self._counted[key] = sums if before is None else before + sums

    @override
    async def flush(self) -> None:
        """Write what was counted, after a batch that may not have been written."""
        is_in_doubt = self._is_in_doubt
        await super().flush()
        if is_in_doubt and not self._is_in_doubt:
            await super().flush()

    @property
    def _is_in_doubt(self) -> bool:
        return self._batch.number > self._written

    @override
    def _take(self) -> Batch:
        if self._is_in_doubt:
            return self._batch
        counted, self._counted = self._counted, {}
        if not counted:
            return Batch(self._gateway_id, 0, {})
        self._batch = Batch(self._gateway_id, self._batch.number + 1, counted)
        return self._batch

    @override
    def _write(self, gathered: Batch) -> None:
        with self._database.writer() as session:
            append_batch(session, gathered)
        self._written = gathered.number

    @override
    def _put_back(self, gathered: Batch) -> None:
        """Keep nothing more: the batch is in doubt until it is written."""
