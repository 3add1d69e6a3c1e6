"""Carries comparisons out, in every API process: who is free takes the next, or one whose process died."""

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
from app.core.settings import Settings
from app.storage.base import Storage

log = logging.getLogger("toque.comparisons")

_AT_ONCE = 4
"""In one process; a long one must not hold up all others."""


class Runner:
    """This process's share of the comparisons."""

    def __init__(self, settings: Settings, database: Database, storage: Storage, gateway: Gateway) -> None:
        self._database = database
        self._storage = storage
        self._gateway = gateway
        self._external = ExternalEndpoints(settings)
        self._lease_seconds = 3 * settings.heartbeat_seconds
        self._poll_seconds = settings.poll_seconds

    async def run(self) -> None:
        """Takes comparisons until it is cancelled; then it gives back those that are not done."""
        free = asyncio.Semaphore(_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await free.acquire()
                    comparison = await self._claim()
                    task = tasks.create_task(self._carry_out(comparison))
                    task.add_done_callback(lambda _: free.release())
        finally:
            await self._external.close()

    async def _claim(self) -> Comparison:
        """The next one, once there is one."""
        while True:
            try:
                if (comparison := await to_thread.run_sync(self._claim_next)) is not None:
                    return comparison
            except SQLAlchemyError as error:
                log.warning("comparisons cannot be claimed: %s", type(error).__name__)
            await asyncio.sleep(self._poll_seconds)

    def _claim_next(self) -> Comparison | None:
        with self._database.reader() as session:
            if not queue.is_waiting(session):
                return None
        with self._database.writer() as session:
            return queue.claim_next(session, self._lease_seconds)

    async def _carry_out(self, comparison: Comparison) -> None:
        try:
            await self._execute(comparison)
        except asyncio.CancelledError:  # this process ends
            await self._write(queue.release, comparison)
            raise

    async def _execute(self, comparison: Comparison) -> None:
        chat_client = ChatClient(self._gateway, self._external, comparison.project_id)
        attempt = Attempt(self._database, self._storage, chat_client, comparison, self._lease_seconds)
        try:
            await attempt.run()
        except* queue.LeaseLostError:
            pass  # cancelled, or another process goes on with it
        except* ToqueError as group:
            body = _first(group).body
            await self._fail(comparison, body.code or "invalid_request", body.message)
        except* BrokenWorkerProcess:
            message = "The process that chooses examples and grades answers died: out of memory?"
            await self._fail(comparison, "grading_failed", message)
        except* Exception:
            log.exception("%s fails", comparison.id)
            await self._fail(comparison, "internal_error", "An internal error; the service's log has it.")

    async def _fail(self, comparison: Comparison, code: str, message: str) -> None:
        await self._write(partial(queue.fail, code=code, message=message), comparison)

    async def _write(self, change: Callable[[Session, str, int], None], comparison: Comparison) -> None:
        """One fenced transaction, if it can be: else the lease runs out, and another process goes on."""

        def transaction() -> None:
            with self._database.writer() as session:
                change(session, comparison.id, comparison.lease_epoch)

        try:
            await to_thread.run_sync(transaction)
        except (queue.LeaseLostError, SQLAlchemyError) as error:
            log.warning("%s is left as it is: %s", comparison.id, type(error).__name__)


def _first(group: ExceptionGroup[ToqueError]) -> ToqueError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
