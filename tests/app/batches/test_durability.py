"""A batch goes on whatever happens to the processes that work on it, and to the engines."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from openai import OpenAI
from sqlalchemy import func, select, update

from app.batches.models import Batch, BatchAnswer
from app.core.database import Database
from app.core.settings import Settings
from app.orphans import find_orphans, sweep_orphans
from app.storage import open_storage
from tests.app.comparisons.stub_engine import StubEngine, number_asked, reference
from tests.support.api_process import api_process
from tests.support.batch_files import content, create, ended, lines
from tests.support.engine_stand_in import register_engine, run_engine
from tests.support.service import run_service
from tests.support.waiting import wait_until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Only where a test ends it does a lease run out, however long a process stands still."""
    return settings.model_copy(update={"heartbeat_seconds": 600.0})


def end_leases(database: Database) -> None:
    with database.writer() as session:
        session.execute(update(Batch).where(Batch.lease_until.is_not(None)).values(lease_until=0.0))


def assert_each_once(client: OpenAI, batch_id: str, count: int) -> None:
    """Every request of the file has one line in the output file, in its order, with its own answer."""
    done = ended(client, batch_id, seconds=120)
    assert done.status == "completed", done
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": count, "completed": count, "failed": 0}
    assert done.usage is not None
    assert done.usage.output_tokens == 3 * count
    output = content(client, done.output_file_id)
    answers = [
        (each["custom_id"], each["response"]["body"]["choices"][0]["message"]["content"]) for each in output
    ]
    assert answers == [(f"pot-{number}", reference(number)) for number in range(count)]


def test_a_killed_process_loses_nothing_that_was_recorded(
    settings: Settings, database: Database, engine: StubEngine
) -> None:
    engine.hold_after = 60
    engine.go_on.clear()
    with api_process(settings) as (process, client):
        created = create(client, lines(range(100)))
        wait_until(lambda: _recorded(database) == 60, "sixty answers are recorded", seconds=90)
        process.kill()
        process.wait()
    end_leases(database)
    with database.reader() as session:
        recorded = {line - 1 for line in session.scalars(select(BatchAnswer.number))}
    engine.go_on.set()
    wait_until(lambda: engine.in_flight == 0, "nobody waits any more")
    engine.hold_after = 10**9
    with run_service(settings) as service, service.client() as client:
        assert_each_once(client, created.id, 100)
    asked = Counter(map(number_asked, engine.bodies))
    assert {number for number, times in asked.items() if times == 1} >= recorded
    assert max(asked.values()) == 2, "those in flight are asked again"


@pytest.mark.one_database
@pytest.mark.parametrize("seed", [1, 2])
def test_random_kills_answer_each_request_once(
    settings: Settings, database: Database, engine: StubEngine, seed: int
) -> None:
    source = random.Random(seed)
    engine.respond = lambda body: (time.sleep(0.002), reference(number_asked(body)))[1]
    batches: list[str] = []
    for _ in range(3):
        with api_process(settings) as (process, client):
            if not batches:
                batches += [create(client, lines(range(150))).id for _ in range(2)]
            wanted = _recorded(database) + source.randrange(1, 60)
            _wait_until_recorded(database, wanted)
            process.kill()
            process.wait()
        end_leases(database)
    with run_service(settings) as service, service.client() as client:
        for batch in batches:
            assert_each_once(client, batch, 150)


def test_a_process_that_stops_in_order_hands_its_batch_on_at_once(
    settings: Settings, database: Database, engine: StubEngine
) -> None:
    engine.hold_after = 5
    engine.go_on.clear()
    with run_service(settings) as service, service.client() as client:
        created = create(client, lines(range(20)))
        wait_until(lambda: _recorded(database) == 5, "five are answered", seconds=90)
    engine.go_on.set()
    with run_service(settings) as service, service.client() as client:
        assert_each_once(client, created.id, 20)


@pytest.mark.one_database
def test_two_processes_share_the_batches(settings: Settings, database: Database, engine: StubEngine) -> None:
    with api_process(settings) as (_, client), run_service(settings):
        ids = [create(client, lines(range(6))).id for _ in range(4)]
        for each in ids:
            assert_each_once(client, each, 6)
    assert len(engine.bodies) == 24


@pytest.mark.one_database
def test_engines_that_are_away_are_waited_for(client: OpenAI, database: Database) -> None:
    created = create(client, lines(range(6)))
    wait_until(
        lambda: client.batches.retrieve(created.id).status == "in_progress", "it has begun", seconds=90
    )
    engine = StubEngine(lambda body: reference(number_asked(body)))
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        socket = str(Path(folder) / "engine.sock")
        with run_engine(engine, socket):
            register_engine(database, f"unix:{socket}")
            assert_each_once(client, created.id, 6)


def test_a_deleted_input_file_is_kept_until_its_batch_has_ended(
    settings: Settings, database: Database, engine: StubEngine
) -> None:
    storage = open_storage(settings)
    engine.hold_after = 0
    engine.go_on.clear()
    with run_service(settings) as service, service.client() as client:
        created = create(client, lines(range(3)))
        wait_until(lambda: engine.bodies, "it has begun", seconds=90)
        client.files.delete(created.input_file_id)
        assert sweep_orphans(database, storage, age_seconds=-1) == []
    with database.reader() as session:
        assert find_orphans(session, storage, age_seconds=-1).missing == []
    engine.go_on.set()
    with run_service(settings) as service, service.client() as client:
        assert_each_once(client, created.id, 3)
    assert len(sweep_orphans(database, storage, age_seconds=-1)) == 1


def _wait_until_recorded(database: Database, count: int) -> None:
    """Until so many answers are recorded, or both batches have ended."""
    wait_until(lambda: _recorded(database) >= count or _ended(database) == 2, "some", seconds=90)


def _recorded(database: Database) -> int:
    with database.reader() as session:
        return session.scalar(select(func.count(BatchAnswer.number))) or 0


def _ended(database: Database) -> int:
    with database.reader() as session:
        return session.scalar(select(func.count(Batch.id)).where(Batch.status == "completed")) or 0
