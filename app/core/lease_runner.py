"""Runs leased work in the background of an API process: claims the next row, and gives it back at the end.

What a row's work is, and which row is claimed next, is for each table to say (`app.core.lease`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.database import Base, Database
from app.core.lease import Lease, LeaseLostError, LeaseTable, async_database_retrying
from app.core.settings import Settings

log = logging.getLogger("toque.lease")

Row = TypeVar("Row", bound=Base)
T = TypeVar("T")


class Queue(Protocol[Row]):
    """How the rows of one table are claimed and given back; a slice's module `queue` is one."""

    @property
    def LEASES(self) -> LeaseTable[Row]:  # noqa: N802 - a constant of the module
        """The table's leases."""
        ...

    @property
    def has_claimable(self) -> Callable[[Session], bool]:
        """Whether there is a row to claim; an idle process asks this first, as it takes no lock."""
        ...

    @property
    def claim_next(self) -> Callable[[Session, float], Row | None]:
        """Lease the next row for so many seconds; None when there is none."""
        ...

    @property
    def release(self) -> Callable[[Session, Lease], None]:
        """Give the row back, so that another process continues the work."""
        ...


class LeaseRunner(Generic[Row]):
    """Claims the rows of one table in an API process, and works on several of them at once."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        queue: Queue[Row],
        work: Callable[[Row, Lease], Awaitable[None]],
        *,
        most: int,
    ) -> None:
        self.lease_seconds = 3 * settings.heartbeat_seconds
        self._database = database
        self._queue = queue
        self._work = work
        self._most = most
        self._poll_seconds = settings.poll_seconds
        self._wakeup = asyncio.Event()

    async def run(self) -> None:
        """Claim rows and work on them until cancelled; the unfinished ones are then given back."""
        free = asyncio.Semaphore(self._most)
        async with asyncio.TaskGroup() as tasks:
            while True:
                await free.acquire()
                row = await self._claim()
                task = tasks.create_task(self._run(row))
                task.add_done_callback(lambda _: free.release())

    def wake(self) -> None:
        """Look for a row to claim now, as there may be one."""
        self._wakeup.set()

    async def write(self, change: Callable[[Session, Lease], None], lease: Lease) -> None:
        """Run one last transaction; if it fails, the lease expires and another process continues."""
        try:
            await to_thread.run_sync(_transaction, self._database, change, lease)
        except (LeaseLostError, SQLAlchemyError) as error:
            log.warning("%s is left to expire: %s", lease.id, error)

    async def _claim(self) -> Row:
        """Claim the next row, waiting until there is one."""
        while True:
            self._wakeup.clear()
            try:
                if (row := await to_thread.run_sync(self._claim_next)) is not None:
                    return row
            except SQLAlchemyError as error:
                log.warning("nothing can be claimed: %s", type(error).__name__)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._wakeup.wait()

    def _claim_next(self) -> Row | None:
        with self._database.reader() as session:
            if not self._queue.has_claimable(session):
                return None
        with self._database.writer() as session:
            return self._queue.claim_next(session, self.lease_seconds)

    async def _run(self, row: Row) -> None:
        lease = self._queue.LEASES.lease_of(row)
        try:
            await self._work(row, lease)
        except asyncio.CancelledError:  # this process ends
            await self.write(self._queue.release, lease)
            raise


class LeasedTransactions:
    """The transactions of one attempt at leased work: they wait while the database is away."""

    def __init__(self, database: Database, lease: Lease) -> None:
        self._database = database
        self._lease = lease

    async def read(self, read: Callable[..., T], *arguments: Any) -> T:
        """Return what `read` returns, which gets a session that keeps no changes, and the arguments."""

        def transaction() -> T:
            with self._database.reader() as session:
                return read(session, *arguments)

        return await async_database_retrying()(to_thread.run_sync, transaction)

    async def write(self, change: Callable[..., T], *values: Any) -> T:
        """Run one transaction; `change` gets its session, the lease to fence it with, and the values.

        Raises:
            LeaseLostError: the lease is no longer held.
        """
        return await async_database_retrying()(
            to_thread.run_sync, _transaction, self._database, change, self._lease, *values
        )


def _transaction(database: Database, change: Callable[..., T], lease: Lease, *values: Any) -> T:
    with database.writer() as session:
        return change(session, lease, *values)
