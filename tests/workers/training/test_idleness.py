"""How an idle worker hears of a job."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.engine import make_url

from app.core.database import Database, database_now
from app.core.settings import Settings
from app.fine_tuning.models import FineTuningJob
from tests.support.databases import execute_sql
from tests.support.job_rows import add_job
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until
from workers.training.idleness import Idleness

POLL = 60.0


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"poll_seconds": POLL, "heartbeat_seconds": 1000.0})


@pytest.fixture
def idleness(settings: Settings, database: Database) -> Iterator[Idleness]:
    idleness = Idleness(settings, database)
    with idleness.notifications:
        yield idleness
    idleness.end()


def change_job(database: Database, **values: Any) -> None:
    with database.writer() as session:
        session.execute(update(FineTuningJob).where(FineTuningJob.id == "ftjob-t").values(**values))


def waited(idleness: Idleness, meanwhile: Callable[[], object]) -> float:
    """The seconds that a wait lasts while something happens; 20 if it is not over by then."""
    began = time.monotonic()
    thread = threading.Thread(target=idleness.wait, args=(POLL,), daemon=True)
    thread.start()
    meanwhile()
    thread.join(20.0)
    return time.monotonic() - began


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_queued_job_wakes_the_workers_that_have_its_base_model(
    database: Database, settings: Settings, idleness: Idleness
) -> None:
    with database.writer() as session:
        add_job(session)
    other = Idleness(settings, database)
    with other.notifications, database.reader() as session:
        wait_until(lambda: idleness.notifications.arrive and other.notifications.arrive, "notifications")
        assert idleness.seconds(session, ["another", BASE_MODEL]) == 10 * POLL
        other.seconds(session, ["another"])
        asleep = threading.Thread(target=other.wait, args=(POLL,))
        asleep.start()
        assert waited(idleness, lambda: change_job(database, status="queued")) < 15
        assert asleep.is_alive()
        other.end()
        asleep.join()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_job_that_waits_for_its_next_attempt_is_looked_for_in_time(
    database: Database, idleness: Idleness
) -> None:
    with database.writer() as session:
        add_job(session)
    change_job(database, status="queued", not_before=database_now() + 100.0)
    wait_until(lambda: idleness.notifications.arrive, "notifications")
    with database.reader() as session:
        assert 60 < idleness.seconds(session, [BASE_MODEL]) <= 100
        assert idleness.seconds(session, ["another"]) == 10 * POLL


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_after_the_server_has_ended_the_connection_it_polls_and_listens_again(
    database: Database, idleness: Idleness, postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.notifications._RETRY_SECONDS", 0.5)
    wait_until(lambda: idleness.notifications.arrive, "notifications")
    name = make_url(database.url).database
    with database.writer() as session:
        # No new connection is let in until it has been seen that this one is lost.
        execute_sql(postgresql, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        kill = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE starts_with(query, 'LISTEN') AND datname = current_database()"
        )
        assert session.connection().exec_driver_sql(kill).scalars().all() == [True]
    wait_until(lambda: not idleness.notifications.arrive, "the connection is lost")
    with database.reader() as session:
        assert idleness.seconds(session, [BASE_MODEL]) == POLL
    execute_sql(postgresql, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    wait_until(lambda: idleness.notifications.arrive, "it listens again")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_without_notifications_it_polls(database: Database, idleness: Idleness) -> None:
    with database.reader() as session:
        assert idleness.seconds(session, [BASE_MODEL]) == POLL
    assert waited(idleness, idleness.end) < 15
