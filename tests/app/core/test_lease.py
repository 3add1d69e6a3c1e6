"""The lease: whatever owners do, crash or write too late, a row has one owner and no stale write counts."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import MetaData, String, Text, delete, or_, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.core.database import Base, Database, database_now
from app.core.lease import (
    Heartbeat,
    Lease,
    LeaseLostError,
    LeaseTable,
    async_heartbeat,
    database_retrying,
)
from tests.support.databases import execute_sql
from tests.support.waiting import wait_until

LEASE_SECONDS = 3600.0
TASKS = ["task-a", "task-b", "task-c"]
LEASE = Lease("task-a", 1)


class Task(Base):
    """The least that a table needs to be leased; only this test has it."""

    __tablename__ = "leased_tasks"
    metadata = MetaData()  # its own, which migrations are not compared with

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    status: Mapped[str] = mapped_column(String(16), default="queued")
    epoch: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[float | None]
    written: Mapped[str] = mapped_column(Text, default="")


LEASES = LeaseTable(
    Task,
    key=Task.id,
    epoch=Task.epoch,
    until=Task.lease_until,
    held=Task.status == "running",
    status=Task.status,
)


def claim_next(session: Session) -> Lease | None:
    """The claim query of this table."""
    next_task = (
        select(Task.id)
        .where(or_(Task.status == "queued", LEASES.expired))
        .order_by(Task.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    task = session.scalar(LEASES.claim(next_task, LEASE_SECONDS, status="running"))
    return LEASES.lease_of(task) if task is not None else None


class CrashError(Exception):
    """The process dies before its transaction commits."""


class LeaseMachine(RuleBasedStateMachine):
    """Several owners compete for three tasks; the clock jumps by moving the time until which leases last."""

    database: Database
    leases = Bundle("leases")

    @initialize()
    def start(self) -> None:
        with self.database.writer() as session:
            session.execute(delete(Task))
            session.add_all(Task(id=task) for task in TASKS)
        self.held: dict[str, int] = {}
        """The epoch that each leased task is held by."""
        self.expired: set[str] = set()
        self.done: set[str] = set()
        self.epochs = dict.fromkeys(TASKS, 0)
        self.written = dict.fromkeys(TASKS, "")

    @rule(target=leases, crashes=st.booleans())
    def claim(self, crashes: bool) -> Any:
        claimable = [
            task
            for task in TASKS
            if task not in self.done and (task not in self.held or task in self.expired)
        ]
        try:
            with self.database.writer() as session:
                lease = claim_next(session)
                if crashes:
                    raise CrashError
        except CrashError:
            return multiple()
        if lease is None:
            assert claimable == []
            return multiple()
        assert lease.id == claimable[0]
        assert lease.epoch == self.epochs[lease.id] + 1, "an epoch is used once"
        self.epochs[lease.id] = self.held[lease.id] = lease.epoch
        self.expired.discard(lease.id)
        return lease

    def attempt(self, lease: Lease, change: Callable[[Session], None]) -> bool:
        """A write succeeds exactly if its lease is held; an expired one counts until it is claimed again."""
        owned = self.held.get(lease.id) == lease.epoch
        try:
            with self.database.writer() as session:
                change(session)
        except LeaseLostError as lost:
            assert not owned
            assert lost.status == self.status(lease.id)
            return False
        assert owned, "a stale epoch wrote"
        return True

    def status(self, task: str) -> str:
        return "done" if task in self.done else "running" if task in self.held else "queued"

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        if self.attempt(lease, lambda s: LEASES.renew(s, lease, LEASE_SECONDS)):
            self.expired.discard(lease.id)

    @rule(lease=leases)
    def verify(self, lease: Lease) -> None:
        self.attempt(lease, lambda s: LEASES.verify(s, lease))

    @rule(lease=leases, text=st.sampled_from(["x", "y"]), is_expression=st.booleans())
    def write(self, lease: Lease, text: str, is_expression: bool) -> None:
        value: Any = Task.written + text if is_expression else text
        if self.attempt(lease, lambda s: LEASES.update(s, lease, written=value)):
            self.written[lease.id] = self.written[lease.id] + text if is_expression else text

    @rule(lease=leases)
    def crash_while_writing(self, lease: Lease) -> None:
        def write(session: Session) -> None:
            LEASES.release(session, lease, status="done", written="half")
            raise CrashError

        owned = self.held.get(lease.id) == lease.epoch
        with pytest.raises(CrashError if owned else LeaseLostError), self.database.writer() as session:
            write(session)

    @rule(lease=leases)
    def release(self, lease: Lease) -> None:
        if self.attempt(lease, lambda s: LEASES.release(s, lease, status="queued")):
            del self.held[lease.id]
            self.expired.discard(lease.id)

    @rule(lease=leases)
    def finish(self, lease: Lease) -> None:
        if self.attempt(lease, lambda s: LEASES.release(s, lease, status="done")):
            del self.held[lease.id]
            self.expired.discard(lease.id)
            self.done.add(lease.id)

    @rule(task=st.sampled_from(TASKS))
    def cancel(self, task: str) -> None:
        """Somebody without a lease takes the work away."""
        if task in self.held:
            with self.database.writer() as session:
                this = update(Task).where(Task.id == task)
                session.execute(this.values(status="done", lease_until=None))
            del self.held[task]
            self.expired.discard(task)
            self.done.add(task)

    @rule(tasks=st.sets(st.sampled_from(TASKS), min_size=1))
    def time_passes(self, tasks: set[str]) -> None:
        """The clock jumps past the leases of these tasks: their owners have crashed or are frozen."""
        with self.database.writer() as session:
            held = update(Task).where(Task.id.in_(tasks), Task.status == "running")
            session.execute(held.values(lease_until=database_now() - 1.0))
        self.expired |= tasks & self.held.keys()

    @invariant()
    def promises(self) -> None:
        if not hasattr(self, "held"):
            return
        with self.database.reader() as session:
            rows = {row.id: row for row in session.scalars(select(Task))}
            active = set(session.scalars(select(Task.id).where(LEASES.active)))
            expired = set(session.scalars(select(Task.id).where(LEASES.expired)))
        assert {task: row.status for task, row in rows.items()} == {task: self.status(task) for task in TASKS}
        assert {task: row.epoch for task, row in rows.items()} == self.epochs
        assert {task: row.written for task, row in rows.items()} == self.written
        assert {task for task, row in rows.items() if row.lease_until is not None} == set(self.held)
        assert (active, expired) == (set(self.held) - self.expired, self.expired)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_lease_keeps_its_promises(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if kind == "sqlite":
        path = tmp_path / "toque.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        url = f"sqlite:///{path}"
    else:
        server: str = request.getfixturevalue("postgresql")
        name = f"lease_{uuid.uuid4().hex}"
        execute_sql(server, f"CREATE DATABASE {name} TEMPLATE template_toque")
        url = server.format(name)

    class Machine(LeaseMachine):
        database = Database(url)

    Task.metadata.create_all(Machine.database.engine)
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=30, stateful_step_count=40),
    )
    Machine.database.dispose()


def test_owners_that_race_for_one_row_get_it_once(database_url: str) -> None:
    database = Database(database_url)
    Task.metadata.create_all(database.engine)
    with database.writer() as session:
        session.add_all(Task(id=f"task-{number:02}") for number in range(40))
    leases: list[Lease] = []

    def work() -> None:
        while True:
            with database.writer() as session:
                lease = claim_next(session)
            if lease is None:
                return
            leases.append(lease)

    owners = [threading.Thread(target=work) for _ in range(4)]
    for owner in owners:
        owner.start()
    for owner in owners:
        owner.join()
    assert sorted(lease.id for lease in leases) == [f"task-{number:02}" for number in range(40)]
    assert {lease.epoch for lease in leases} == {1}
    database.dispose()


def test_a_heartbeat_survives_what_fails_and_ends_with_its_lease() -> None:
    beats: list[float] = []
    lost: list[LeaseLostError] = []

    def beat() -> None:
        beats.append(time.monotonic())
        if len(beats) == 1:
            raise OperationalError("UPDATE", {}, Exception("the database is away"))
        if len(beats) == 2:
            raise RuntimeError
        if len(beats) == 4:
            raise LeaseLostError(LEASE, "cancelled")

    with Heartbeat(0.01, beat, lost.append):
        wait_until(lambda: lost, "the lease is lost")
        time.sleep(0.05)
    assert len(beats) == 4
    assert [error.status for error in lost] == ["cancelled"]


def test_no_beat_comes_after_a_heartbeat_has_ended() -> None:
    beats: list[None] = []
    with Heartbeat(0.01, lambda: beats.append(None)):
        wait_until(lambda: len(beats) > 2, "it beats")
    count = len(beats)
    time.sleep(0.05)
    assert len(beats) == count


def test_a_lost_lease_cancels_the_coroutine_that_held_it() -> None:
    cleaned_up: list[str] = []

    def beat() -> None:
        raise LeaseLostError(LEASE)

    async def work() -> None:
        async with async_heartbeat(0.01, beat):
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(asyncio.sleep(60))
            finally:
                await asyncio.sleep(0.01)  # a block may still clean up
                cleaned_up.append("block")

    async def main() -> None:
        with pytest.raises(LeaseLostError, match=r"^the lease on task-a \(epoch 1\) is lost$"):
            await work()
        await asyncio.sleep(0)  # the task around the block is not cancelled

    asyncio.run(main())
    assert cleaned_up == ["block"]


def test_an_asynchronous_heartbeat_ends_with_its_block() -> None:
    beats: list[None] = []

    async def work(error: BaseException | None) -> None:
        async with async_heartbeat(0.01, lambda: beats.append(None)):
            count = len(beats)
            while len(beats) == count:  # noqa: ASYNC110 - a thread adds to them
                await asyncio.sleep(0.01)
            if error is not None:
                raise error

    asyncio.run(work(None))
    assert beats
    for error in (TimeoutError("of the block"), ValueError()):
        with pytest.raises(type(error)) as caught:
            asyncio.run(work(error))
        assert caught.value is error
    count = len(beats)
    time.sleep(0.05)
    assert len(beats) == count


def test_a_transaction_is_tried_again_while_the_database_is_away() -> None:
    tries: list[None] = []

    def transaction() -> int:
        tries.append(None)
        if len(tries) < 3:
            raise OperationalError("UPDATE", {}, Exception("the database is away"))
        return len(tries)

    assert database_retrying(60.0)(transaction) == 3
    tries.clear()
    with pytest.raises(OperationalError):
        database_retrying(0.0)(transaction)
    assert len(tries) == 1
