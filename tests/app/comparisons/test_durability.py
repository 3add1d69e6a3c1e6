"""A comparison goes on whatever happens to the processes that carry it out, and to the engines."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from openai import OpenAI
from sqlalchemy import update

from app.comparisons.models import Comparison
from app.core.database import Database
from app.core.settings import Settings
from tests.app.comparisons.stub_engine import (
    TUNED,
    StubEngine,
    add_tuned,
    create,
    ended,
    get,
    lines,
    number_asked,
    tuned_model_is_right,
    upload,
)
from tests.support.api_process import api_process
from tests.support.engine_stand_in import register_engine, run_engine
from tests.support.service import run_service
from tests.support.waiting import wait_until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Only where a test ends it does a lease run out, however long a process stands still."""
    return settings.model_copy(update={"heartbeat_seconds": 600.0})


CANDIDATES = [{"type": "base"}, {"type": "model", "model": TUNED}]


@pytest.mark.one_database
def test_a_killed_process_loses_nothing_and_no_question_is_asked_twice(
    settings: Settings, database: Database, engine: StubEngine
) -> None:
    add_tuned(database)
    engine.hold_after = 60
    engine.go_on.clear()
    with api_process(settings) as (process, client):
        held_out = upload(client, lines(range(40)))
        created = create(client, file=held_out, candidates=CANDIDATES, concurrency=8)
        wait_until(lambda: len(engine.bodies) == 68, "eight requests wait")
        wait_until(lambda: get(client, created["id"])["progress"]["done"] == 60, "sixty answers are kept")
        process.kill()
        process.wait()
    with database.writer() as session:
        session.execute(update(Comparison).values(lease_until=0.0))
    in_flight = {(body["model"], number_asked(body)) for body in engine.bodies[60:]}
    wait_until(lambda: engine.in_flight == 0, "nobody waits any more")
    engine.hold_after = 10**9
    with run_service(settings) as service, service.client() as client:
        done = ended(client, created["id"])
    assert done["status"] == "succeeded"
    assert [each["score"] for each in done["candidates"]] == [0.0, 1.0]
    asked = Counter((body["model"], number_asked(body)) for body in engine.bodies)
    assert len(asked) == 80
    assert {ask for ask, times in asked.items() if times > 1} == in_flight
    assert sum(asked.values()) == 88


def test_a_process_that_stops_in_order_hands_its_comparison_on_at_once(
    settings: Settings, database: Database, engine: StubEngine
) -> None:
    engine.hold_after = 5
    engine.go_on.clear()
    with run_service(settings) as service, service.client() as client:
        held_out = upload(client, lines(range(20)))
        created = create(client, file=held_out, candidates=[{"type": "base"}], concurrency=2)
        wait_until(lambda: len(engine.bodies) == 7, "two requests wait")
    engine.go_on.set()
    with run_service(settings) as service, service.client() as client:
        done = ended(client, created["id"])
    assert (done["status"], len(engine.bodies)) == ("succeeded", 22)


@pytest.mark.one_database
def test_two_processes_share_the_comparisons(
    settings: Settings, database: Database, engine: StubEngine
) -> None:
    with api_process(settings) as (_, client), run_service(settings):
        held_out = upload(client, lines(range(6)))
        ids = [create(client, file=held_out, candidates=[{"type": "base"}])["id"] for _ in range(4)]
        assert {ended(client, each)["status"] for each in ids} == {"succeeded"}
    assert len(engine.bodies) == 24


def test_engines_that_are_away_are_waited_for(
    client: OpenAI, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    held_out = upload(client, lines(range(6)))
    created = create(client, file=held_out, candidates=[{"type": "base"}])
    wait_until(lambda: get(client, created["id"])["status"] == "running", "it has begun")
    engine = StubEngine(tuned_model_is_right)
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        socket = str(Path(folder) / "engine.sock")
        with run_engine(engine, socket):
            register_engine(database, f"unix:{socket}")
            done = ended(client, created["id"])
    assert done["status"] == "succeeded"
    assert done["candidates"][0]["failures"] == 0
    assert len(engine.bodies) == 6
