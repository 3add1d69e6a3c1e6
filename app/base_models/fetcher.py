"""Fetches the catalogue's base models from the bucket to this machine, in the background of an API process.

The API counts tokens with them, renders their chat templates, and checks imported adapters against their
weights.
"""

from __future__ import annotations

import asyncio
import logging
import threading

from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from app.base_models.stored import StoredBases
from app.core.database import Database
from app.core.settings import BaseModelEntry, Settings
from app.models.catalogue import Catalogue, is_prepared, stored_base
from app.storage.base import Storage

log = logging.getLogger("toque.base_models")

_RETRY_SECONDS = 60.0
_STOP_SECONDS = 10.0
"""A bucket that does not answer is not waited for longer when the service stops."""


class BaseFetcher:
    """Looks for base models that are in the bucket and not on this machine."""

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self._settings = settings
        self._database = database
        self._bases = StoredBases(settings, database, storage)

    async def run(self) -> None:
        """Look and fetch until cancelled; what fails is tried again a minute later."""
        if not self._settings.storage_bucket:
            return
        while True:
            is_done = await self._fetch_in_thread()
            await asyncio.sleep(self._settings.heartbeat_seconds if is_done else _RETRY_SECONDS)

    async def _fetch_in_thread(self) -> bool:
        """Fetch what is missing; if cancelled, wait until the thread uses the database no more."""
        stopping = threading.Event()
        fetching = asyncio.ensure_future(to_thread.run_sync(self._fetch_missing, stopping))
        try:
            return await asyncio.shield(fetching)
        except asyncio.CancelledError:
            stopping.set()
            await asyncio.wait([fetching], timeout=_STOP_SECONDS)
            raise

    def _fetch_missing(self, stopping: threading.Event) -> bool:
        """Return whether all that there are could be fetched; one that cannot be is in no other's way."""
        is_done = True
        try:
            for entry in self._missing():
                is_done = self._fetch(entry, stopping) and is_done
        except SQLAlchemyError as error:
            log.warning("base models are not fetched now: %s", error)
            return False
        return is_done

    def _fetch(self, entry: BaseModelEntry, stopping: threading.Event) -> bool:
        try:
            self._bases.fetch(entry, stopping)
        except OSError as error:
            log.warning("%s is not fetched now: %s", entry.name, error)
            return False
        return True

    def _missing(self) -> list[BaseModelEntry]:
        with self._database.reader() as session:
            return [
                entry
                for entry in Catalogue.read(session, self._settings).entries
                if not is_prepared(self._settings, entry) and stored_base(session, entry)
            ]
