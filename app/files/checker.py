"""Checks uploaded training files in the background, each in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakValueDictionary

from anyio import BrokenWorkerProcess, CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError

from app.core.child_process import run_in_child
from app.core.database import Database
from app.core.lease import Lease, LeaseLostError, async_heartbeat
from app.core.settings import Settings
from app.core.threads import entered_in_thread
from app.datasets.report import Progress, Report, timed_out_report
from app.datasets.validation import PreparedBase, validate_to_json
from app.files import checks
from app.models.catalogue import Catalogue, prepared_base
from app.storage.base import Storage

log = logging.getLogger("toque.checker")

_SMALL_FILE_BYTES = 16 * 2**20
"""The size, unpacked, up to which a file does not wait for a large one to be checked."""
_SETTLE_POLL_SECONDS = 0.05
_UNREADABLE_RETRY_SECONDS = 10.0
"""How long a check waits after its file could not be read."""
_LOOK_SECONDS = 2.0
"""How long a check goes on after its file was deleted."""
_MAX_PROCESSES = 4
"""The most processes that one check uses."""


class Checker:
    """Claims and runs the checks of one API process: one file of any size, and a small one beside it."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        after_check: Callable[[], None],
        is_awaited: checks.IsAwaited,
    ) -> None:
        """`after_check` is called after each check, in a thread."""
        self._settings = settings
        self._database = database
        self._storage = storage
        self._after_check = after_check
        self._is_awaited = is_awaited
        self._processes = CapacityLimiter(2)
        self._on_request = CapacityLimiter(1)
        self._requests_of: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By project: it waits for its own requests to validate a file, so that projects take turns."""
        self._beat_seconds = min(_LOOK_SECONDS, settings.lease_seconds / 3)
        self._wakeups = (asyncio.Event(), asyncio.Event())

    async def run(self) -> None:
        """Check the files that wait, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for wakeup, max_bytes in zip(self._wakeups, (None, _SMALL_FILE_BYTES), strict=True):
                tasks.create_task(self._work(wakeup, max_bytes))

    def wake(self) -> None:
        """Look for a file to check now, as one has just been uploaded."""
        for wakeup in self._wakeups:
            wakeup.set()

    async def settle(self, file_ids: Sequence[str], seconds: float) -> None:
        """Wait until the files have been checked by this process or another, but at most `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                # Another process may be checking them, so the database is polled.
                while not await to_thread.run_sync(self._are_done, file_ids):  # noqa: ASYNC110
                    await asyncio.sleep(_SETTLE_POLL_SECONDS)

    async def validate(self, project_id: str, storage_key: str, base: PreparedBase | None) -> Report:
        """Validate a project's file for a base model that it was not checked for; one request at a time."""
        async with self._requests_of.setdefault(project_id, asyncio.Lock()):
            report = await self._validate(storage_key, base, self._on_request)
        assert report is not None
        return report

    async def _work(self, wakeup: asyncio.Event, max_bytes: int | None) -> None:
        while True:
            wakeup.clear()
            try:
                claim = await to_thread.run_sync(self._claim, max_bytes)
                if claim is not None:
                    await self._check(claim, max_bytes)
                await to_thread.run_sync(self._after_check)
            except LeaseLostError as lost:
                log.warning("%s", lost)
                claim = None
            except SQLAlchemyError as error:
                log.warning("no file is checked, as the database cannot be reached: %s", type(error).__name__)
                claim = None
            except Exception:  # the files after this one must still be checked
                log.exception("a file cannot be checked")
                claim = None
            if claim is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.poll_seconds):
                        await wakeup.wait()

    async def _check(self, claim: checks.Claim, max_bytes: int | None) -> None:
        lease = claim.lease
        try:
            with TemporaryDirectory(prefix="toque-check-") as folder:
                progress = Path(folder) / "progress.json"
                async with async_heartbeat(self._beat_seconds, lambda: self._renew(lease, progress)):
                    base = await to_thread.run_sync(self._prepared_base)
                    report = await self._validate(
                        claim.storage_key, base, self._processes, max_bytes, progress
                    )
            if report is None:
                await to_thread.run_sync(self._write, checks.set_aside, lease)
            else:
                await to_thread.run_sync(self._write, checks.finish, lease, report)
        except asyncio.CancelledError:
            with suppress(LeaseLostError, SQLAlchemyError):  # the lease has ended, or will expire
                await asyncio.shield(to_thread.run_sync(self._write, checks.release, lease))
            raise
        except OSError as error:
            log.warning("%s cannot be read: %s", lease.id, error)
            await to_thread.run_sync(self._write, checks.release, lease, _UNREADABLE_RETRY_SECONDS)
        except BrokenWorkerProcess:
            log.error("%s: the process that checked it died", lease.id)
            await to_thread.run_sync(self._write, checks.LEASES.release, lease)

    async def _validate(
        self,
        storage_key: str,
        base: PreparedBase | None,
        limiter: CapacityLimiter,
        max_bytes: int | None = None,
        progress: Path | None = None,
    ) -> Report | None:
        """Return the report, or None if the file unpacks into more than `max_bytes`."""
        max_lines = self._settings.max_file_lines
        processes, seconds = min(_MAX_PROCESSES, os.cpu_count() or 1), self._settings.max_check_seconds
        try:
            async with entered_in_thread(self._storage.local(storage_key)) as path:
                found = await run_in_child(
                    validate_to_json,
                    str(path),
                    base,
                    processes,
                    max_lines,
                    max_bytes,
                    str(progress) if progress is not None else None,
                    limiter=limiter,
                    seconds=seconds,
                )
        except TimeoutError:
            return await to_thread.run_sync(timed_out_report, seconds)
        return Report.model_validate_json(found) if found is not None else None

    def _claim(self, max_bytes: int | None) -> checks.Claim | None:
        with self._database.reader() as session:
            if not checks.any_waits(session):  # an idle process takes no write lock
                return None
        with self._database.writer() as session:
            return checks.claim_next(
                session, self._settings.lease_seconds, max_bytes=max_bytes, is_awaited=self._is_awaited
            )

    def _prepared_base(self) -> PreparedBase | None:
        with self._database.reader() as session:
            catalogue = Catalogue.read(session, self._settings)
        return prepared_base(self._settings, catalogue)

    def _renew(self, lease: Lease, progress: Path) -> None:
        """Renew the lease, and record the progress that the process which reads the file has written."""
        found = Progress.model_validate_json(progress.read_bytes()) if progress.exists() else None
        with self._database.writer() as session:
            checks.LEASES.renew(session, lease, self._settings.lease_seconds)
            if found is not None:
                checks.tell(session, lease, found)
            has_ended = checks.end_unwanted(session, lease, self._is_awaited)
        if has_ended:
            raise LeaseLostError(lease, "deleted")

    def _write(self, change: Callable[..., None], lease: Lease, *values: Any) -> None:
        """Run one transaction, fenced by the lease."""
        with self._database.writer() as session:
            change(session, lease, *values)

    def _are_done(self, file_ids: Sequence[str]) -> bool:
        with self._database.reader() as session:
            return checks.are_done(session, file_ids)
