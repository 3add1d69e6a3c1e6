"""Runs comparisons in the API processes: each claims the next that is queued or whose process has died."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from anyio import BrokenWorkerProcess, to_thread
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.comparisons import queue
from app.comparisons.attempt import Attempt
from app.comparisons.chat_client import ChatClient
from app.comparisons.external import ExternalEndpoints
from app.comparisons.models import Comparison
from app.completions.gateway import Gateway
from app.core.database import Database
from app.core.errors import ToqueError
from app.core.lease import Lease, LeaseLostError
from app.core.settings import Settings
from app.storage.base import Storage

log = logging.getLogger("toque.comparisons")

_MAX_RUNNING = 4
"""Comparisons that one process runs at once, so that a long one does not hold up the others."""


class Runner:
    """Claims and runs the comparisons of one API process."""

    def __init__(self, settings: Settings, database: Database, storage: Storage, gateway: Gateway) -> None:
        self._database = database
        self._storage = storage
        self._gateway = gateway
        self._external = ExternalEndpoints(settings)
        self._lease_seconds = 3 * settings.heartbeat_seconds
        self._poll_seconds = settings.poll_seconds

    async def run(self) -> None:
        """Claim and run comparisons until cancelled; the unfinished ones then go back to the queue."""
        free = asyncio.Semaphore(_MAX_RUNNING)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await free.acquire()
                    comparison = await self._claim()
                    task = tasks.create_task(self._run(comparison))
                    task.add_done_callback(lambda _: free.release())
        finally:
            await self._external.close()

    async def _claim(self) -> Comparison:
        """Claim the next comparison, waiting until there is one."""
        while True:
            try:
                if (comparison := await to_thread.run_sync(self._claim_next)) is not None:
                    return comparison
            except SQLAlchemyError as error:
                log.warning("cannot claim a comparison: %s", type(error).__name__)
            await asyncio.sleep(self._poll_seconds)

    def _claim_next(self) -> Comparison | None:
        with self._database.reader() as session:
            if not queue.has_claimable(session):
                return None
        with self._database.writer() as session:
            return queue.claim_next(session, self._lease_seconds)

    async def _run(self, comparison: Comparison) -> None:
        lease = queue.LEASES.lease_of(comparison)
        try:
            await self._execute(comparison, lease)
        except asyncio.CancelledError:  # this process ends
            await self._write(queue.release, lease)
            raise

    async def _execute(self, comparison: Comparison, lease: Lease) -> None:
        chat_client = ChatClient(self._gateway, self._external, comparison.project_id)
        attempt = Attempt(self._database, self._storage, chat_client, comparison, lease, self._lease_seconds)
        try:
            await attempt.run()
        except* LeaseLostError as lost:
            log.info("%s: %s", comparison.id, lost.exceptions[0])
        except* ToqueError as group:
            body = _first(group).body
            await self._fail(lease, body.code or "invalid_request", body.message)
        except* BrokenWorkerProcess:
            message = "The process that chooses examples and grades answers died: out of memory?"
            await self._fail(lease, "grading_failed", message)
        except* Exception:
            log.exception("%s failed", comparison.id)
            await self._fail(lease, "internal_error", "An internal error; the service's log has it.")

    async def _fail(self, lease: Lease, code: str, message: str) -> None:
        await self._write(partial(queue.fail, code=code, message=message), lease)

    async def _write(self, change: Callable[[Session, Lease], None], lease: Lease) -> None:
        """Run one transaction; if it fails, the lease expires and another process continues."""

        def transaction() -> None:
            with self._database.writer() as session:
                change(session, lease)

        try:
            await to_thread.run_sync(transaction)
        except (LeaseLostError, SQLAlchemyError) as error:
            log.warning("%s is left to expire: %s", lease.id, error)


def _first(group: ExceptionGroup[ToqueError]) -> ToqueError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
