"""What is written down of the base models that are asked for, which decides what engines run."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import select, update

from app.completions import service
from app.completions.engine_choice import SETTLED_SECONDS
from app.completions.models import EngineDemand
from app.completions.replicas import Replicas
from app.core.database import Database
from app.core.errors import UnavailableError
from app.core.settings import Settings
from app.files.models import File
from app.fine_tuning.models import FineTuningJob
from app.models.adapters.models import Adapter
from tests.support.aliases import add_model
from tests.support.engine_stand_in import register_engine
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until

PROCESSES = 4


def test_gateways_may_write_the_same_down_at_the_same_time(database: Database) -> None:
    names = [f"base-{number}" for number in range(40)]
    together = Barrier(PROCESSES)

    def write(process: int) -> None:
        together.wait()
        with database.writer() as session:
            service.record_demand(session, f"gateway_{process // 2}", dict.fromkeys(names, 1))

    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(write, range(PROCESSES)))
    with database.reader() as session:
        idle = service.idle_seconds(session, service.unverified_seconds(session))
    assert sorted(idle) == sorted(names)
    assert all(0 <= seconds < 30 for seconds in idle.values())


def engines_needed(database: Database, settings: Settings) -> dict[str, int]:
    with database.reader() as session:
        return service.engines_needed(session, settings)


def test_engines_are_needed_for_the_requests_of_all_gateways(settings: Settings, database: Database) -> None:
    limits = settings.model_copy(update={"fleet_requests_per_engine": 4, "fleet_engines_per_base": 3})
    assert engines_needed(database, limits) == {}
    with database.writer() as session:
        service.record_demand(session, "gateway_1", {"asked": 0, "busy": 4, "crowded": 100})
        service.record_demand(session, "gateway_2", {"busy": 1})
    assert engines_needed(database, limits) == {"asked": 1, "busy": 2, "crowded": 3}

    with database.writer() as session:
        service.record_demand(session, "gateway_2", {"busy": 0})
        long_ago = EngineDemand.asked_at - limits.engine_idle_seconds
        session.execute(
            update(EngineDemand).where(EngineDemand.base_model == "asked").values(asked_at=long_ago)
        )
        dead = EngineDemand.asked_at - 60
        session.execute(
            update(EngineDemand).where(EngineDemand.base_model == "crowded").values(asked_at=dead)
        )
    assert engines_needed(database, limits) == {"asked": 0, "busy": 1, "crowded": 1}


def test_a_gateway_that_is_gone_is_forgotten(settings: Settings, database: Database) -> None:
    with database.writer() as session:
        service.record_demand(session, "gateway_1", {"old": 0, "new": 0})
        long_ago = EngineDemand.asked_at - 2 * 86400
        session.execute(
            update(EngineDemand).where(EngineDemand.base_model == "old").values(asked_at=long_ago)
        )
        service.delete_old_demand(session)
    assert engines_needed(database, settings) == {"new": 1}


def test_answers_that_are_being_given_are_written_down(settings: Settings, database: Database) -> None:
    register_engine(database, "http://127.0.0.1:1")

    async def in_flight() -> int:
        replicas = Replicas(settings, database)
        await replicas.refresh()
        answered = asyncio.Event()
        asking = [replicas.ask(BASE_MODEL, "key", lambda _: answered.wait()) for _ in range(2)]
        asked = asyncio.gather(*asking)
        await asyncio.sleep(0)  # both are in flight
        following = asyncio.create_task(replicas.run())
        try:
            rows: list[EngineDemand] = await asyncio.to_thread(wait_until, demand, "it is written down")
        finally:
            answered.set()
            await asked
            following.cancel()
            await replicas.close()
        return rows[0].in_flight

    def demand() -> list[EngineDemand]:
        with database.reader() as session:
            return list(session.scalars(select(EngineDemand)))

    assert asyncio.run(in_flight()) == 2


def test_requests_that_find_no_engine_write_it_down_once(settings: Settings, database: Database) -> None:
    bare = settings.model_copy(update={"engine_wait_seconds": 0.0})

    def asked_at() -> float:
        with database.reader() as session:
            return session.scalars(select(EngineDemand.asked_at)).one()

    async def ask_twice() -> tuple[float, float]:
        replicas = Replicas(bare, database)
        times: list[float] = []
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await replicas.choose("base", "base")
            times.append(asked_at())
        return times[0], times[1]

    first, second = asyncio.run(ask_twice())
    assert first == second


def test_a_request_that_waits_for_an_engine_keeps_its_base_wanted(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.completions.demand._EVERY_SECONDS", 0.1)
    patient = settings.model_copy(update={"engine_wait_seconds": 60.0})

    def asked_at() -> float:
        with database.reader() as session:
            return session.scalar(select(EngineDemand.asked_at)) or 0.0

    async def wait_for_more() -> None:
        replicas = Replicas(patient, database)
        following = asyncio.create_task(replicas.run())
        request = asyncio.create_task(replicas.choose("base", "base"))
        first = await asyncio.to_thread(wait_until, asked_at, "it is written down")
        await asyncio.to_thread(wait_until, lambda: asked_at() > first, "it is written down again")
        for task in (request, following):
            task.cancel()
        await replicas.close()

    asyncio.run(wait_for_more())


def test_a_model_that_was_not_compared_yet_keeps_its_base_wanted(database: Database) -> None:
    name = add_model(database, "new", base_model="base", created_at=time.time() - 86400)
    with database.writer() as session:
        project_id = session.get_one(Adapter, name).project_id
        content = {"bytes": 1, "sha256": "0", "storage_key": "f"}
        session.add(File(id="file-1", project_id=project_id, filename="f", purpose="fine-tune", **content))
        session.flush()
        session.add(
            FineTuningJob(
                project_id=project_id,
                model="base",
                status="succeeded",
                training_file_id="file-1",
                fine_tuned_model=name,
                seed=1,
                method="supervised",
                hyperparameters={},
            )
        )
    with database.reader() as session:
        assert service.idle_seconds(session, service.unverified_seconds(session)) == {"base": SETTLED_SECONDS}
    with database.writer() as session:
        session.get_one(Adapter, name).parity = {"tokens": 1}
    with database.reader() as session:
        assert service.idle_seconds(session, service.unverified_seconds(session)) == {}
