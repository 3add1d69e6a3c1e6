"""Maintenance that any worker does for the whole deployment; doing it twice does no harm."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection

from sqlalchemy.exc import SQLAlchemyError

from app.completions import service as completions_service
from app.core.database import Database
from app.core.idempotency import delete_expired
from app.core.settings import Settings
from app.fine_tuning import queue, quota_pauses, worker_registry
from app.models.adapters import files as adapter_files
from app.orphans import sweep_orphans
from app.project_data.retention import delete_old_data
from app.responses import service as responses_service
from app.storage.base import Storage
from app.usage.entries import forget_silent_gateways
from app.usage.folding import fold_entries, fold_oldest_day
from app.webhooks import queue as webhook_queue
from workers.worker_locks import WorkerLocks

log = logging.getLogger("toque.maintenance")

_CLEAN_UP_SECONDS = 3600.0


class Maintenance:
    """Runs what is due: most of it once per heartbeat, the clean-up every hour."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        worker_locks: WorkerLocks,
        verify_models: Callable[[], None],
        own_jobs: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`own_jobs` are those that this process works on itself."""
        self._settings = settings
        self._database = database
        self._storage = storage
        self._worker_locks = worker_locks
        self._own_jobs = own_jobs
        self._verify_models = verify_models
        self._ran_at = self._cleaned_up_at = -math.inf
        self._database_away_at = -math.inf

    def run_maintenance(self) -> None:
        """Run what is due now; what fails is tried again the next time."""
        now = time.monotonic()
        if now - self._ran_at < self._settings.heartbeat_seconds:
            return
        self._ran_at = now
        try:
            self._requeue_jobs()
            self._note_missing_gpus()
            with self._database.writer() as session:
                quota_pauses.pause_and_resume(session)
            while self._fold_entries():
                pass
            self._verify_models()
            if now - self._cleaned_up_at > _CLEAN_UP_SECONDS:
                self._cleaned_up_at = now
                self._clean_up()
        except SQLAlchemyError as error:
            self.database_was_away()
            log.warning("maintenance failed: %s", error)
        except OSError as error:
            log.warning("maintenance failed: %s", error)

    def database_was_away(self) -> None:
        """Note that the database could not be reached just now."""
        self._database_away_at = time.monotonic()

    def _requeue_jobs(self) -> None:
        """End the attempts of workers that are gone, and resume jobs that waited for room in the storage."""
        away_seconds = time.monotonic() - self._database_away_at
        dead = self._worker_locks.dead_workers()
        own = self._own_jobs()  # their leases have expired if this process was frozen
        with self._database.writer() as session:
            if dead:
                queue.reclaim_from(session, dead, self._settings.retry_seconds)
            # While the database was away no worker could renew its leases; those that live do so first.
            if away_seconds > 3 * self._settings.heartbeat_seconds:
                queue.reclaim_expired(session, self._settings.retry_seconds, own)
            if self._storage.free_bytes() >= self._settings.storage_room_bytes:
                queue.resume_with_room(session)
        self._worker_locks.forget(dead)

    def _note_missing_gpus(self) -> None:
        with self._database.writer() as session:
            queue.note_missing_gpus(
                session, worker_registry.offered_gpus(session, self._settings.heartbeat_seconds)
            )

    def _clean_up(self) -> None:
        """Delete what nobody needs any more, and fold the usage of past days."""
        with self._database.writer() as session:
            delete_expired(session)
            responses_service.delete_expired(session)
            worker_registry.delete_silent(session)
            completions_service.delete_old_demand(session)
            forget_silent_gateways(session)
        adapter_files.measure(self._database, self._storage)
        delete_old_data(self._database)
        while self._delete_old_deliveries():
            pass
        sweep_orphans(self._database, self._storage)
        while self._fold_usage():
            pass

    def _delete_old_deliveries(self) -> bool:
        with self._database.writer() as session:
            return webhook_queue.delete_old(session)

    def _fold_entries(self) -> bool:
        with self._database.writer() as session:
            return fold_entries(session, time.time())

    def _fold_usage(self) -> bool:
        with self._database.writer() as session:
            return fold_oldest_day(session, time.time())
