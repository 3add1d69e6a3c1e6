"""When keys were last used: kept in memory, and written once a minute, so that no request waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from app.auth import service
from app.core.database import Database

log = logging.getLogger("toque.auth")

_FLUSH_SECONDS = 60.0


class LastUses:
    """The uses of keys that this process has seen and not yet written."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unwritten: dict[str, float] = {}

    def record(self, key_id: str, at: float) -> None:
        """Note that a key is used at this time (seconds since the epoch)."""
        self._unwritten[key_id] = at

    async def run(self) -> None:
        """Write once a minute, until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write the uses; if the database cannot be reached, they are kept for the next time."""
        unwritten, self._unwritten = self._unwritten, {}
        if not unwritten:
            return
        try:
            await to_thread.run_sync(self._write, unwritten)
        except SQLAlchemyError as error:
            log.warning("last uses of keys cannot be written yet: %s", type(error).__name__)
            self._unwritten = unwritten | self._unwritten

    def _write(self, unwritten: Mapping[str, float]) -> None:
        with self._database.writer() as session:
            service.record_uses(session, unwritten)
