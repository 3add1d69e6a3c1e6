"""What pgbouncer in transaction mode changes; `make test-pgbouncer` runs much else behind it, too."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, text

from app.core.database import Database, advisory_lock
from app.core.settings import Settings
from tests.support.job_rows import add_job
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until
from workers.training.idleness import Idleness

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def test_more_connections_than_the_server_gives_share_prepared_statements(database: Database) -> None:
    together = threading.Barrier(20)

    def work(number: int) -> int:
        with database.engine.connect() as connection:
            together.wait()
            found = [connection.scalar(select(func.abs(number))) or connection.commit() for _ in range(30)]
        return sum(value or 0 for value in found)

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(work, range(20))) == [30 * number for number in range(20)]
    with database.reader() as session:
        shared = session.scalar(
            text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        )
        assert shared <= 5


def test_a_lock_is_held_until_the_transaction_ends_and_no_longer(database: Database) -> None:
    order: list[str] = []
    is_locked = threading.Event()

    def lock_second() -> None:
        is_locked.wait()
        with database.writer() as session:
            advisory_lock(session, "kitchen")
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(lock_second)
        with database.writer() as session:
            advisory_lock(session, "kitchen")
            is_locked.set()
            with pytest.raises(TimeoutError):
                second.result(0.5)
            order.append("first")
        second.result(20)
    assert order == ["first", "second"]


def test_without_the_servers_own_address_workers_poll(database: Database, settings: Settings) -> None:
    with database.writer() as session:
        add_job(session)
    often = settings.poll_seconds
    settings = settings.model_copy(update={"heartbeat_seconds": 1000.0})
    pooled = Idleness(settings.model_copy(update={"database_direct_url": ""}), database)
    direct = Idleness(settings, database)
    with pooled.notifications, direct.notifications:
        wait_until(lambda: direct.notifications.arrive, "notifications")
        with database.reader() as session:
            assert direct.seconds(session, [BASE_MODEL]) > often
            assert pooled.seconds(session, [BASE_MODEL]) == often
