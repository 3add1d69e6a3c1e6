"""Runs batches in the API processes: each claims the next that is waiting or whose process has died."""

from __future__ import annotations

import asyncio
import logging

from anyio import CapacityLimiter, to_thread

from app.batches import queue
from app.batches.attempt import Attempt
from app.batches.models import Batch
from app.completions.background import BackgroundLoad
from app.completions.gateway import Gateway
from app.context import Context
from app.core.database import Database
from app.core.errors import ToqueError
from app.core.lease import Lease, LeaseLostError, async_database_retrying
from app.core.lease_runner import LeaseRunner
from app.core.settings import Settings
from app.storage.base import Storage

log = logging.getLogger("toque.batches")

_MAX_VALIDATED = 2
"""Files that one process validates at once, in child processes that it shares with nothing else."""
_MAX_ASKED = 32
"""Batches whose requests one process asks at once. They share the limits of `BackgroundLoad`, in turns."""
_MAX_PUBLISHED = 2
"""Batches that one process publishes at once."""


class Runner:
    """Claims and runs the batches of one API process."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        gateway: Gateway,
        background: BackgroundLoad,
    ) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._gateway = gateway
        self._background = background
        self._processes = CapacityLimiter(_MAX_VALIDATED)
        self._stages = [
            LeaseRunner(settings, database, stage, self._execute, most=most)
            for stage, most in (
                (queue.VALIDATION, _MAX_VALIDATED),
                (queue.ASKING, _MAX_ASKED),
                (queue.PUBLICATION, _MAX_PUBLISHED),
            )
        ]

    async def run(self) -> None:
        """Claim and run batches until cancelled; the unfinished ones then go back to the queue."""
        async with asyncio.TaskGroup() as tasks:
            for stage in self._stages:
                tasks.create_task(stage.run())

    async def _execute(self, batch: Batch, lease: Lease) -> None:
        context = Context(batch.project_id, self._settings, self._storage)
        attempt = Attempt(
            self._database,
            context,
            self._gateway,
            self._background,
            self._processes,
            batch,
            lease,
            self._stages[0].lease_seconds,
        )
        try:
            await attempt.run()
            await self._delete_published()
        except* LeaseLostError as lost:
            log.info("%s: %s", batch.id, lost.exceptions[0])
        except* (ToqueError, OSError) as group:  # no space is left, or the storage is away
            log.warning("%s waits until its lease expires: %s", batch.id, group.exceptions[0])
        except* Exception:
            log.exception("%s waits until its lease expires", batch.id)
        for stage in self._stages:
            stage.wake()

    async def _delete_published(self) -> None:
        def delete() -> bool:
            with self._database.reader() as session:  # the search takes no lock
                found = queue.find_published(session)
            if found is not None:
                with self._database.writer() as session:
                    queue.delete_answers(session, *found)
            return found is not None

        while await async_database_retrying()(to_thread.run_sync, delete):
            pass
