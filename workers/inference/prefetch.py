"""Fetches newly published models to this machine, so that no first request waits for the bucket."""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database
from app.models.adapters import service
from app.storage.base import Storage, StorageUnavailableError

log = logging.getLogger("toque.engine")

_OVERLAP_SECONDS = 60.0
"""Clocks of machines may differ by this much."""


class Prefetch(threading.Thread):
    """Looks for new models of one base, until it is stopped; what fails is left to the first request."""

    def __init__(self, database: Database, storage: Storage, base_model: str, every: float) -> None:
        super().__init__(name="prefetch", daemon=True)
        self._database = database
        self._storage = storage
        self._base_model = base_model
        self._every = every
        self._stopping = threading.Event()
        self._since = time.time()
        self._fetched: set[str] = set()

    def stop(self) -> None:
        """End it soon; a fetch that has begun is not waited for."""
        self._stopping.set()

    def run(self) -> None:
        """Look and fetch."""
        while not self._stopping.wait(self._every):
            try:
                self._fetch_new()
            except (SQLAlchemyError, StorageUnavailableError) as error:
                log.warning("new models are not fetched now: %s", error)

    def _fetch_new(self) -> None:
        looked_at = time.time()
        with self._database.reader() as session:
            keys = service.keys_since(session, self._base_model, self._since - _OVERLAP_SECONDS)
        for key in keys:
            if key not in self._fetched:
                self._fetch(key)
                self._fetched.add(key)
        self._fetched.intersection_update(keys)
        self._since = looked_at

    def _fetch(self, key: str) -> None:
        try:
            with self._storage.local(key):
                pass
        except StorageUnavailableError:
            raise
        except (OSError, ValueError) as error:  # whoever asks for it is told
            log.warning("%s is not fetched: %s", key, error)
