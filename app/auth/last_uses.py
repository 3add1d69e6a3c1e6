"""When keys were last used: kept in memory, and written once a minute, so that no request waits for it."""

from __future__ import annotations

from typing_extensions import override

from app.auth import service
from app.core.database import Database
from app.core.periodic_writer import PeriodicWriter


class LastUses(PeriodicWriter[dict[str, float]]):
    """The uses of keys that this process has seen and not yet written."""

    _seconds = 60.0
    _what = "last uses of keys"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unwritten: dict[str, float] = {}

    def record(self, key_id: str, at: float) -> None:
        """Note that a key is used at this time (seconds since the epoch)."""
        self._unwritten[key_id] = at

    @override
    def _take(self) -> dict[str, float]:
        gathered, self._unwritten = self._unwritten, {}
        return gathered

    @override
    def _write(self, gathered: dict[str, float]) -> None:
        with self._database.writer() as session:
            service.record_uses(session, gathered)

    @override
    def _put_back(self, gathered: dict[str, float]) -> None:
        self._unwritten = gathered | self._unwritten
