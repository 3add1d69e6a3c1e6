"""Entries of usage: each is counted once, whatever dies and however many processes fold them."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection

import httpx2
import pytest
from alembic import command
from sqlalchemy import delete, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from typing_extensions import override

from app.auth.models import Project
from app.core.database import Base, Database
from app.usage.aggregator import UsageAggregator
from app.usage.entries import Batch, append_batch, forget_silent_gateways
from app.usage.folding import add_usage, fold_entries, fold_oldest_day
from app.usage.models import SUMS, AliasUsage, EntryKey, KeyUsage, Sums, Usage, UsageBatch, UsageEntry
from tests.support.databases import configuration
from tests.support.usage import totals, usage
from tests.support.waiting import wait_until

MODELS = ("soup", "stew")
FLUSHES = 40


@pytest.fixture
def project_id(database: Database) -> str:
    with database.reader() as session:
        return session.scalars(select(Project.id).where(Project.name == "default")).one()


class Forgetful(Database):
    """Does not say of every third transaction that it has been committed."""

    _commits = 0

    @override
    @contextmanager
    def writer(self) -> Generator[Session]:
        with super().writer() as session:
            yield session
        self._commits += 1
        if self._commits % 3 == 0:
            raise OperationalError("COMMIT", {}, ConnectionError("the answer is lost"))


async def count_and_flush(usage: UsageAggregator, project_id: str, key_id: str) -> None:
    """Four requests, of which two name an alias."""
    for model in MODELS:
        for alias in ("a:live", None):
            usage.count(project_id, model, 2, 3, alias=alias, key_id=key_id)
    await usage.flush()


def be_a_gateway(url: str, project_id: str, key_id: str) -> None:
    database = Forgetful(url)
    usage = UsageAggregator(database)

    async def run() -> None:
        for _ in range(FLUSHES):
            await count_and_flush(usage, project_id, key_id)
        await usage.flush()

    asyncio.run(run())
    database.dispose()


def be_killed(url: str, project_id: str, written: Connection) -> None:
    """A gateway that says of each batch that it is written."""
    usage = UsageAggregator(Database(url))

    async def run() -> None:
        while True:
            await count_and_flush(usage, project_id, "killed")
            written.send(None)

    asyncio.run(run())


class KilledGateway:
    """A gateway in another process, which SIGKILL ends in the midst of its work."""

    def __init__(self, database: Database, project_id: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._written, child_end = context.Pipe(duplex=False)
        self._database = database
        arguments = database.url, project_id, child_end
        self._process = context.Process(target=be_killed, args=arguments, daemon=True)
        self._process.start()
        child_end.close()
        self._written.recv()
        with database.reader() as session:
            [self._id] = session.scalars(select(UsageBatch.gateway_id)).all()

    def kill(self, batches: int) -> int:
        """End it once it has written so many batches; returns how many it has written."""
        for _ in range(batches):
            self._written.recv()
        self._process.kill()
        self._process.join()
        # Its last transaction may be on the way: PostgreSQL commits what it was told to, and holds the row.
        number = select(UsageBatch.number).where(UsageBatch.gateway_id == self._id).with_for_update()
        with self._database.writer() as session:
            return session.scalars(number).one()


def keep_folding(database: Database, stop: threading.Event) -> None:
    while not stop.wait(0.01):  # in between, others get SQLite's lock
        fold_all(database)


def fold_all(database: Database) -> None:
    more = True
    while more:
        with database.writer() as session:
            more = fold_entries(session, time.time() + 600)


def test_usage_is_exact_whatever_is_folded_lost_or_killed_meanwhile(
    database: Database, project_id: str, http: httpx2.Client
) -> None:
    with database.writer() as session:  # as gateways of earlier versions do
        add_usage(session, {(project_id, int(time.time()) // 60 * 60, "soup"): Sums(1, 2, 3)})
    keys, stop, seen = [f"key_{n}" for n in range(3)], threading.Event(), [0]
    killed = KilledGateway(database, project_id)
    with ThreadPoolExecutor() as threads:
        folding = [threads.submit(keep_folding, database, stop) for _ in range(2)]
        gateways = [threads.submit(be_a_gateway, database.url, project_id, key) for key in keys]
        try:
            while not all(gateway.done() for gateway in gateways):
                seen.append(totals(usage(http))[0])
            batches = FLUSHES * len(keys) + killed.kill(batches=10)
        finally:
            stop.set()
        for thread in (*folding, *gateways):
            thread.result()
    assert seen == sorted(seen)
    requests = 4 * batches

    def check() -> None:
        assert totals(usage(http)) == (requests + 1, 2 * requests + 2, 3 * requests + 3)
        assert totals(usage(http, models="stew"))[0] == requests // 2
        assert totals(usage(http, aliases="a:live"))[0] == requests // 2
        assert totals(usage(http, aliases=""))[0] == 0
        for key in keys:
            assert totals(usage(http, api_key_ids=key))[0] == 4 * FLUSHES

    check()
    fold_all(database)
    assert rows_of(database, UsageEntry) == 0
    check()


def rows_of(database: Database, table: type[Base]) -> int:
    with database.reader() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_recent_entries_are_not_folded(database: Database, project_id: str) -> None:
    now = time.time()
    with database.writer() as session:
        append_batch(session, batch_of(project_id, minute=int(now) - 60))
        assert not fold_entries(session, now)
        append_batch(session, batch_of(project_id, minute=int(now) - 600, number=2))
        assert fold_entries(session, now)
        assert not fold_entries(session, now)
    assert [rows_of(database, table) for table in (UsageEntry, Usage, KeyUsage, AliasUsage)] == [1, 1, 1, 0]


def batch_of(project_id: str, *, minute: int = 0, number: int = 1, alias: str | None = None) -> Batch:
    return Batch("gateway_1", number, {EntryKey(project_id, minute, "soup", "key_1", alias): Sums(1, 2, 3)})


def test_what_a_deleted_project_has_used_is_dropped(database: Database, project_id: str) -> None:
    counted = batch_of(project_id).counted | batch_of("proj_deleted").counted
    for _ in range(2):  # the second time, the batch is known
        with database.writer() as session:
            append_batch(session, Batch("gateway_1", 7, counted))
    assert rows_of(database, UsageEntry) == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("fold", [fold_entries, fold_oldest_day])
def test_folding_waits_for_the_deletion_of_a_project(
    database: Database, project_id: str, fold: Callable[[Session, float], bool]
) -> None:
    with database.writer() as session:
        append_batch(session, batch_of(project_id))
        add_usage(session, {(project_id, minute, "soup"): Sums(1, 2, 3) for minute in (60, 120)})

    def run() -> bool:
        with database.writer() as session:
            return fold(session, time.time())

    def waits() -> bool:
        with database.reader() as session:
            return session.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one() > 0

    with ThreadPoolExecutor() as threads:
        with database.writer() as session:
            session.execute(select(Project.id).where(Project.id == project_id).with_for_update())
            folding = threads.submit(run)
            wait_until(waits, "what folds waits for the project")
            for table in (UsageEntry, Usage):
                session.execute(delete(table).where(table.project_id == project_id))
        folding.result()
    assert rows_of(database, Usage) == 0


def test_gateways_that_are_gone_are_forgotten(database: Database, project_id: str) -> None:
    week = 7 * 86400
    with database.writer() as session:
        append_batch(session, batch_of(project_id))
        session.add(UsageBatch(gateway_id="gateway_gone", number=3, written_at=time.time() - week - 60))
        session.flush()
        forget_silent_gateways(session)
        assert session.scalars(select(UsageBatch.gateway_id)).all() == ["gateway_1"]


def test_entries_are_in_the_sums_of_an_earlier_version(
    database: Database, database_url: str, project_id: str
) -> None:
    with database.writer() as session:
        add_usage(session, {(project_id, 0, "soup"): Sums(10, 20, 30)})
        for number, alias in enumerate((None, "a:live", "a:live"), 1):
            append_batch(session, batch_of(project_id, number=number, alias=alias))
    command.downgrade(configuration(database_url), "0042")
    with database.reader() as session:
        for table, sums in ((Usage, (13, 26, 39)), (KeyUsage, (3, 6, 9)), (AliasUsage, (2, 4, 6))):
            assert session.execute(select(*(getattr(table, name) for name in SUMS))).all() == [sums]
