"""Checks uploaded training files in the background, each in a process of its own, as soon as it is there."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from anyio import BrokenWorkerProcess, CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError

from app.core.child_process import run_in_child
from app.core.database import Database
from app.core.settings import Settings
from app.datasets.report import Report
from app.datasets.validation import PreparedBase, validate_to_json
from app.files import checks
from app.models.catalogue import prepared_base
from app.storage.base import Storage

log = logging.getLogger("toque.checker")

_SMALL_BYTES = 16 * 2**20
"""Files up to this size do not wait behind a large one."""
_LOOK_AGAIN_SECONDS = 0.05
_STORAGE_AWAY_SECONDS = 10.0
_MOST_PROCESSES = 4


class Checker:
    """One API process's share of the checks: one file of any size, and a small one beside it."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        after_check: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._after_check = after_check
        self._processes = CapacityLimiter(2)
        self._asked = CapacityLimiter(1)
        self._news = (asyncio.Event(), asyncio.Event())

    async def run(self) -> None:
        """Checks what waits, until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for news, max_bytes in zip(self._news, (None, _SMALL_BYTES), strict=True):
                tasks.create_task(self._follow(news, max_bytes))

    def wake(self) -> None:
        """A file has just come."""
        for news in self._news:
            news.set()

    async def settle(self, file_ids: Sequence[str], seconds: float) -> None:
        """Waits until the files are checked, by this process or another, but no longer than that."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                # Another process may be checking them: only the database knows.
                while not await to_thread.run_sync(self._are_done, file_ids):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    async def validate(self, storage_key: str, base: PreparedBase | None) -> Report:
        """A file's report for a base that it was not checked with; one request at a time."""
        return await self._validate(storage_key, base, self._asked)

    async def _follow(self, news: asyncio.Event, max_bytes: int | None) -> None:
        while True:
            news.clear()
            try:
                claim = await to_thread.run_sync(self._claim, max_bytes)
                if claim is not None:
                    await self._check(claim)
                await to_thread.run_sync(self._after_check)
            except SQLAlchemyError as error:
                log.warning("no file is checked, the database is away: %s", type(error).__name__)
                claim = None
            except Exception:  # one that follows no more would be worse
                log.exception("a file cannot be checked")
                claim = None
            if claim is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.poll_seconds):
                        await news.wait()

    async def _check(self, claim: checks.Claim) -> None:
        try:
            async with self._lease(claim):
                base = prepared_base(self._settings)
                report = await self._validate(claim.storage_key, base, self._processes)
        except asyncio.CancelledError:
            await asyncio.shield(to_thread.run_sync(self._release, claim, 0.0))
            raise
        except OSError as error:
            log.warning("%s cannot be read: %s", claim.file_id, error)
            await to_thread.run_sync(self._release, claim, _STORAGE_AWAY_SECONDS)
        except BrokenWorkerProcess:
            log.error("%s: its check died", claim.file_id)
            await to_thread.run_sync(self._expire, claim)
        else:
            await to_thread.run_sync(self._finish, claim, report)

    async def _validate(
        self, storage_key: str, base: PreparedBase | None, limiter: CapacityLimiter
    ) -> Report:
        path = str(self._storage.path(storage_key))
        processes = min(_MOST_PROCESSES, os.cpu_count() or 1)
        found = await run_in_child(validate_to_json, path, base, processes, limiter=limiter)
        return Report.model_validate_json(found)

    @asynccontextmanager
    async def _lease(self, claim: checks.Claim) -> AsyncGenerator[None]:
        async def renew() -> None:
            while True:
                await asyncio.sleep(self._settings.lease_seconds / 3)
                with suppress(SQLAlchemyError):
                    await to_thread.run_sync(self._renew, claim)

        heartbeat = asyncio.create_task(renew())
        try:
            yield
        finally:
            heartbeat.cancel()

    def _claim(self, max_bytes: int | None) -> checks.Claim | None:
        with self._database.reader() as session:
            if not checks.any_waits(session):  # an idle process takes no write lock
                return None
        with self._database.writer() as session:
            return checks.claim_next(session, self._settings.lease_seconds, max_bytes=max_bytes)

    def _renew(self, claim: checks.Claim) -> None:
        with self._database.writer() as session:
            checks.renew(session, claim, self._settings.lease_seconds)

    def _release(self, claim: checks.Claim, wait_seconds: float) -> None:
        with self._database.writer() as session:
            checks.release(session, claim, wait_seconds)

    def _expire(self, claim: checks.Claim) -> None:
        with self._database.writer() as session:
            checks.renew(session, claim, 0.0)

    def _finish(self, claim: checks.Claim, report: Report) -> None:
        with self._database.writer() as session:
            checks.finish(session, claim, report)

    def _are_done(self, file_ids: Sequence[str]) -> bool:
        with self._database.reader() as session:
            return checks.are_done(session, file_ids)
