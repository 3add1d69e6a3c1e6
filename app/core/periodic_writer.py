"""Gathers in memory what requests cause, and writes it every few seconds, so that no request waits for it."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Sized
from typing import ClassVar, Generic, TypeVar

from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

log = logging.getLogger("toque.writer")

T = TypeVar("T", bound=Sized)


class PeriodicWriter(ABC, Generic[T]):
    """What this process has gathered and not yet written; it belongs to the event loop's thread."""

    _seconds: ClassVar[float]
    """The time between two writes."""
    _what: ClassVar[str]
    """What is written, for the log."""

    async def run(self) -> None:
        """Write every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            await self.flush()

    async def flush(self) -> None:
        """Write what was gathered; if the database cannot be reached, it is kept for the next time."""
        gathered = self._take()
        if not len(gathered):
            return
        try:
            await to_thread.run_sync(self._write, gathered)
        except SQLAlchemyError as error:
            log.warning("%s cannot be written yet: %s", self._what, type(error).__name__)
            self._put_back(gathered)

    @abstractmethod
    def _take(self) -> T:
        """Return what was gathered, and begin anew."""

    @abstractmethod
    def _write(self, gathered: T) -> None:
        """Write it in one transaction; this runs in a thread of its own."""

    @abstractmethod
    def _put_back(self, gathered: T) -> None:
        """Add what could not be written to what has been gathered since."""
