"""What is written down of the base models that are asked for, which decides what engines run."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

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

PROCESSES = 4


def test_gateways_may_write_the_same_down_at_the_same_time(database: Database) -> None:
    names = [f"base-{number}" for number in range(40)]
    together = Barrier(PROCESSES)

    def write(process: int) -> None:
        together.wait()
        with database.writer() as session:
            service.record_demand(session, names[:: 1 if process % 2 else -1])

    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(write, range(PROCESSES)))
    with database.reader() as session:
        idle = service.idle_seconds(session, service.unverified_seconds(session))
    assert sorted(idle) == sorted(names)
    assert all(0 <= seconds < 30 for seconds in idle.values())


def test_requests_that_find_no_engine_write_it_down_once(settings: Settings, database: Database) -> None:
    bare = settings.model_copy(update={"engine_wait_seconds": 0.0})

    def asked_at() -> float:
        with database.reader() as session:
            return session.get_one(EngineDemand, "base").asked_at

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
