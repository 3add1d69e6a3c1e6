"""A lease: the right of one process to work on a row for a while.

A claim raises the row's epoch and sets the time at which the lease expires. The owner renews it with a
heartbeat, and every write that it makes names its epoch. A write that finds no row with this epoch raises
`LeaseLostError`: somebody took the work away, or the lease expired and another process claimed the row. The
former owner must then stop and publish nothing. All times come from the database's clock.

What is shared by all tables with leases is here; which row is claimed next is for each table to say. See
docs/leases.md, and https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html for why a
lease needs a fencing token, which the epoch is.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from anyio import to_thread
from sqlalchemy import ColumnElement, Double, Select, and_, bindparam, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.sql.dml import ReturningUpdate, Update
from sqlalchemy.sql.elements import ClauseElement
from tenacity import (
    AsyncRetrying,
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from app.core.database import DATABASE_AWAY, Base, database_now

log = logging.getLogger("toque.lease")

Row = TypeVar("Row", bound=Base)


@dataclass(frozen=True, slots=True)
class Lease:
    """One claim of one row."""

    id: str
    """The row's primary key."""
    epoch: int | str
    """The fencing token: the number of the claim, or the owner's id in a table that does not count claims."""


class LeaseLostError(Exception):
    """The lease is no longer held; `status` is the row's present status, in a table that has one."""

    def __init__(self, lease: Lease, status: str | None = None) -> None:
        lost = f"the lease on {lease.id} (epoch {lease.epoch}) is lost"
        super().__init__(f"{lost}; its status is {status}" if status else lost)
        self.status = status


class LeaseTable(Generic[Row]):
    """The columns of a table that make up its leases, and the statements on them.

    `held` is the condition under which a row is leased. The statements run on the session's connection and
    not through its unit of work, which takes half the time; objects that the session has loaded before are
    not refreshed.
    """

    def __init__(
        self,
        model: type[Row],
        *,
        key: InstrumentedAttribute[str],
        epoch: InstrumentedAttribute[Any],
        until: InstrumentedAttribute[Any],
        held: ColumnElement[bool],
        status: InstrumentedAttribute[str] | None = None,
    ) -> None:
        self._model = model
        self._key, self._epoch, self._until, self._status = key, epoch, until, status
        self.active = and_(held, until > database_now())
        """The condition under which a row is leased, and its lease has not expired."""
        self.expired = and_(held, until <= database_now())
        """The condition under which a row is leased, and its lease has expired."""
        self._fence = update(model).where(
            key == bindparam("fence_key"), epoch == bindparam("fence_epoch"), held
        )
        self._verification = self._fence.values({epoch: bindparam("fence_epoch")})
        self._renewal = self._fence.values({until: database_now() + bindparam("lease_seconds", type_=Double)})

    def claim(self, next_id: Select[str], lease_seconds: float, **values: Any) -> ReturningUpdate[Row]:
        """Build the statement that leases the row that `next_id` selects, sets `values`, and returns the row.

        The selection must lock its row: `with_for_update(skip_locked=True)`.
        """
        leased = {self._epoch.key: self._epoch + 1, self._until.key: database_now() + lease_seconds}
        return (
            update(self._model)
            .where(self._key == next_id.correlate(None).scalar_subquery())
            .values(leased | values)
            .returning(self._model)
            .execution_options(populate_existing=True, synchronize_session=False)
        )

    def lease_of(self, row: Row) -> Lease:
        """The lease that a row which has just been claimed is held by."""
        return Lease(getattr(row, self._key.key), getattr(row, self._epoch.key))

    def renew(self, session: Session, lease: Lease, lease_seconds: float) -> None:
        """Let the lease last `lease_seconds` from now. One that has expired but was not claimed revives.

        Raises:
            LeaseLostError: the lease is no longer held.
        """
        self._execute(session, lease, self._renewal, lease_seconds=lease_seconds)

    def verify(self, session: Session, lease: Lease) -> None:
        """Check the lease, and keep others from taking the row until the transaction ends.

        Raises:
            LeaseLostError: the lease is no longer held.
        """
        self._execute(session, lease, self._verification)

    def update(self, session: Session, lease: Lease, **values: Any) -> None:
        """Set columns of the row, whose values may be SQL expressions.

        Raises:
            LeaseLostError: the lease is no longer held.
        """
        expressions = {name: value for name, value in values.items() if isinstance(value, ClauseElement)}
        if not expressions:
            self._execute(session, lease, self._fence, **values)
            return
        plain = {name: value for name, value in values.items() if name not in expressions}
        self._execute(session, lease, self._fence.values(expressions), **plain)

    def release(self, session: Session, lease: Lease, **values: Any) -> None:
        """End the lease, and set columns so that the row is no longer held.

        Raises:
            LeaseLostError: the lease is no longer held.
        """
        self.update(session, lease, **{self._until.key: None} | values)

    def _execute(self, session: Session, lease: Lease, fence: Update, **values: Any) -> None:
        parameters = {"fence_key": lease.id, "fence_epoch": lease.epoch, **values}
        if session.connection().execute(fence, parameters).rowcount != 1:
            raise LeaseLostError(lease, self._read_status(session, lease))

    def _read_status(self, session: Session, lease: Lease) -> str | None:
        if self._status is None:
            return None
        return session.scalar(select(self._status).where(self._key == lease.id)) or "deleted"


class Heartbeat:
    """Calls `beat` every `interval` seconds, on a thread of its own, while a `with` block runs.

    The first beat comes at once, or after an interval. A beat that raises `LeaseLostError` is the last, and
    `on_lost` is called on the thread. One that fails for another reason is logged; the next may succeed,
    and if none does, the lease expires.
    """

    def __init__(
        self,
        interval: float,
        beat: Callable[[], None],
        on_lost: Callable[[LeaseLostError], None] | None = None,
        *,
        at_once: bool = True,
    ) -> None:
        self._interval = interval
        self._beat = beat
        self._on_lost = on_lost
        self._at_once = at_once
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Have no beat begin from now on."""
        self._ended.set()

    def join(self) -> None:
        """Wait until a beat that has begun is over."""
        self._thread.join()

    def __enter__(self) -> Heartbeat:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.join()

    def _run(self) -> None:
        if not self._at_once and self._ended.wait(self._interval):
            return
        while True:
            try:
                self._beat()
            except LeaseLostError as lost:
                if self._on_lost is not None and not self._ended.is_set():
                    self._on_lost(lost)
                return
            except SQLAlchemyError as error:
                log.warning("heartbeat failed: %s", error)
            except Exception:
                log.exception("heartbeat failed")
            if self._ended.wait(self._interval):
                return


@asynccontextmanager
async def async_heartbeat(interval: float, beat: Callable[[], None]) -> AsyncGenerator[None]:
    """Run a `Heartbeat` while an `async with` block runs; the first beat comes after an interval.

    Raises:
        LeaseLostError: a beat raised it; the block was cancelled.
    """
    loop = asyncio.get_running_loop()
    errors: list[LeaseLostError] = []

    def on_lost(error: LeaseLostError) -> None:
        errors.append(error)
        loop.call_soon_threadsafe(cancel_block)

    def cancel_block() -> None:
        with suppress(RuntimeError):  # the block has just ended
            block.reschedule(loop.time())

    heartbeat = Heartbeat(interval, beat, on_lost, at_once=False)
    # A timeout that is set when the lease is lost: it cancels the block, and nothing around it.
    block = asyncio.timeout(None)
    try:
        async with block:
            heartbeat.start()
            try:
                yield
            finally:
                heartbeat.stop()
                await to_thread.run_sync(heartbeat.join)
    except TimeoutError:
        if errors and block.expired():
            raise errors[0] from None
        raise


_WHEN_AWAY: dict[str, Any] = {
    "retry": retry_if_exception_type(DATABASE_AWAY),
    "wait": wait_exponential_jitter(multiplier=0.2, max=5),
    "before_sleep": before_sleep_log(log, logging.WARNING),
    "reraise": True,
}


def database_retrying(patience_seconds: float) -> Retrying:
    """Return the retry policy of a transaction: it is tried again while the database is away, for so long."""
    return Retrying(stop=stop_after_delay(patience_seconds), **_WHEN_AWAY)


def async_database_retrying() -> AsyncRetrying:
    """Return the same policy for a coroutine, which is tried again until it is cancelled."""
    return AsyncRetrying(**_WHEN_AWAY)
