"""Several engines of one base: which is asked, and what happens when one fails."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from pydantic import SecretStr

from app.auth.models import Project
from app.completions.models import Engine
from app.core.database import Database
from app.core.settings import EngineAddress, Settings
from app.models.adapters.models import Adapter
from tests.support.engine_stand_in import (
    ASK,
    ENGINE_KEY,
    EngineStandIn,
    register_engine,
    run_engine,
    run_engine_process,
)
from tests.support.service import API_KEY, BASE_MODEL, Service, run_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

CHAT = "/v1/chat/completions"


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="toque-") as path:
        yield Path(path)


@pytest.fixture
def two(database: Database, folder: Path) -> Iterator[dict[str, EngineStandIn]]:
    """Two engines by their ids, both in the database before the service starts."""
    with ExitStack() as stack:
        engines: dict[str, EngineStandIn] = {}
        for number in range(2):
            socket = str(folder / f"{number}.sock")
            stand_in = EngineStandIn()
            stack.enter_context(run_engine(stand_in, socket))
            engines[register_engine(database, f"unix:{socket}")] = stand_in
        yield engines


@pytest.fixture
def replica(two: dict[str, EngineStandIn], http: httpx2.Client) -> str:
    """The one whose turn it is not, so that the other comes first."""
    return ask(http).headers["x-toque-replica"]


def ask(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    response = http.post(CHAT, json=ASK | fields)
    assert response.status_code == 200, response.text
    return response


def other_than(one: str, engines: dict[str, EngineStandIn]) -> str:
    return next(engine_id for engine_id in engines if engine_id != one)


def add_adapter(database: Database, name: str) -> None:
    with database.writer() as session:
        project = session.query(Project).filter_by(name="default").one()
        session.add(Adapter(name=name, project_id=project.id, base_model=BASE_MODEL, storage_key="none"))


def test_idle_replicas_take_turns_and_say_who_they_are(
    two: dict[str, EngineStandIn], http: httpx2.Client
) -> None:
    answers = [ask(http, stream=stream) for stream in (False, False, True, True)]
    assert {answer.headers["x-toque-replica"] for answer in answers} == set(two)
    assert [len(engine.bodies) for engine in two.values()] == [2, 2]
    assert all(0 <= float(answer.headers["x-toque-queue-ms"]) < 5000 for answer in answers)


def test_the_less_loaded_replica_is_asked(
    two: dict[str, EngineStandIn], replica: str, client: OpenAI, http: httpx2.Client
) -> None:
    busy = other_than(replica, two)
    two[busy].behaviour = "pause"
    with client.chat.completions.create(**ASK, stream=True) as stream:
        next(iter(stream))
        two[busy].behaviour = "answer"
        assert {ask(http).headers["x-toque-replica"] for _ in range(4)} == {replica}


def test_an_adapter_stays_where_it_is_warm_unless_that_is_far_busier(
    two: dict[str, EngineStandIn], database: Database, service: Service, http: httpx2.Client
) -> None:
    name = f"ft:{BASE_MODEL}:default::1"
    add_adapter(database, name)
    warm = ask(http, model=name).headers["x-toque-replica"]
    assert {ask(http, model=name).headers["x-toque-replica"] for _ in range(4)} == {warm}
    two[warm].behaviour = "pause"
    with ExitStack() as stack, service.client() as client:
        for _ in range(9):
            stream = client.chat.completions.create(**ASK | {"model": name}, stream=True)
            next(iter(stack.enter_context(stream)))
        assert ask(http, model=name).headers["x-toque-replica"] == other_than(warm, two)


@pytest.mark.parametrize(
    ("behaviour", "stream"), [("break", False), ("break at once", True), ("unknown", True)]
)
def test_before_the_first_byte_another_is_asked(
    two: dict[str, EngineStandIn], replica: str, http: httpx2.Client, behaviour: str, stream: bool
) -> None:
    broken = other_than(replica, two)
    two[broken].behaviour = behaviour
    answer = ask(http, stream=stream)
    assert answer.headers["x-toque-replica"] == replica
    assert [len(two[broken].bodies), len(two[replica].bodies)] == [1, 2]


def test_after_the_first_byte_nobody_else_is(
    two: dict[str, EngineStandIn], replica: str, http: httpx2.Client
) -> None:
    two[other_than(replica, two)].behaviour = "break"
    answer = ask(http, stream=True)
    events = answer.text.split("\n\n")
    assert len(events) == 3
    assert "0 " in events[0]
    assert events[1].startswith('data: {"error":{"message":')
    assert "engine_unavailable" in events[1]
    assert "[DONE]" not in answer.text
    assert len(two[replica].bodies) == 1


@pytest.mark.parametrize("behaviour", ["refuse", "fail"])
def test_what_may_be_the_requests_own_fault_is_not_asked_again(
    two: dict[str, EngineStandIn], replica: str, client: OpenAI, behaviour: str
) -> None:
    two[other_than(replica, two)].behaviour = behaviour
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**ASK)
    assert caught.value.response.headers["x-toque-replica"] == other_than(replica, two)
    assert len(two[replica].bodies) == 1


def test_when_both_break_it_is_503(two: dict[str, EngineStandIn], http: httpx2.Client) -> None:
    for engine in two.values():
        engine.behaviour = "break"
    response = http.post(CHAT, json=ASK)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert [len(engine.bodies) for engine in two.values()] == [1, 1]


def test_an_ill_engine_is_out_and_comes_back(two: dict[str, EngineStandIn], http: httpx2.Client) -> None:
    ill = next(iter(two))
    two[ill].behaviour = "ill"
    wait_until(lambda: replicas_seen(http) == set(two) - {ill}, "the ill engine is out", seconds=10)
    two[ill].behaviour = "answer"
    wait_until(lambda: replicas_seen(http) == set(two), "it is back", seconds=10)


def replicas_seen(http: httpx2.Client) -> set[str]:
    return {ask(http).headers["x-toque-replica"] for _ in range(4)}


def test_an_engine_that_is_killed_fails_no_request(
    database: Database, folder: Path, settings: Settings
) -> None:
    with ExitStack() as stack:
        processes = {
            register_engine(database, f"unix:{folder / name}"): stack.enter_context(
                run_engine_process(str(folder / name))
            )
            for name in ("a", "b")
        }
        service = stack.enter_context(run_service(settings))
        http = stack.enter_context(service.http())
        assert replicas_seen(http) == set(processes)
        killed, alive = processes
        processes[killed].kill()
        processes[killed].wait()
        assert replicas_seen(http) == {alive}


def test_a_frozen_engine_is_out_within_ten_seconds_and_its_waiting_requests_go_elsewhere(
    database: Database, folder: Path, settings: Settings
) -> None:
    with ExitStack() as stack:
        processes = {
            register_engine(database, f"unix:{folder / name}"): stack.enter_context(
                run_engine_process(str(folder / name))
            )
            for name in ("a", "b")
        }
        service = stack.enter_context(run_service(settings))
        http = stack.enter_context(service.http())
        assert replicas_seen(http) == set(processes)
        frozen, alive = processes
        processes[frozen].send_signal(signal.SIGSTOP)
        pool = stack.enter_context(ThreadPoolExecutor(2))
        waiting = [pool.submit(ask, http, stream=stream) for stream in (True, False)]
        answers = [each.result(timeout=10) for each in waiting]
        assert {answer.headers["x-toque-replica"] for answer in answers} == {alive}
        assert replicas_seen(http) == {alive}
        processes[frozen].send_signal(signal.SIGCONT)
        wait_until(lambda: replicas_seen(http) == set(processes), "it is back", seconds=10)


def test_an_engine_that_started_anew_is_asked_with_its_new_key(
    two: dict[str, EngineStandIn], database: Database, http: httpx2.Client
) -> None:
    assert replicas_seen(http) == set(two)
    restarted = next(iter(two))
    two[restarted].api_key = "new key"
    assert replicas_seen(http) == set(two) - {restarted}  # asked in vain, and then the other
    with database.writer() as session:
        session.get_one(Engine, restarted).api_key = "new key"
    wait_until(lambda: replicas_seen(http) == set(two), "the new key is known", seconds=5)


def test_an_engine_that_leaves_finishes_its_streams(
    two: dict[str, EngineStandIn], replica: str, database: Database, service: Service, http: httpx2.Client
) -> None:
    leaving = other_than(replica, two)
    two[leaving].behaviour = "endless"
    with service.client() as client, client.chat.completions.create(**ASK, stream=True) as stream:
        chunks = iter(stream)
        next(chunks)
        two[leaving].behaviour = "answer"
        with database.writer() as session:
            session.delete(session.get_one(Engine, leaving))
        wait_until(lambda: replicas_seen(http) == {replica}, "it is asked no more", seconds=5)
        before = two[leaving].chunks_sent
        wait_until(lambda: next(chunks) and two[leaving].chunks_sent > before + 50, "the stream goes on")


def test_engines_of_others_are_given_by_url(database: Database, folder: Path, settings: Settings) -> None:
    stand_in = EngineStandIn()
    address = EngineAddress(
        base_model=BASE_MODEL, url=f"unix:{folder / 'given'}", api_key=SecretStr(ENGINE_KEY)
    )
    given = settings.model_copy(update={"engine_urls": [address]})
    with run_service(given) as service, service.http() as http:
        with run_engine(stand_in, str(folder / "given")):
            wait_until(lambda: http.post(CHAT, json=ASK).status_code == 200, "it is found", seconds=10)
            assert ask(http).headers["x-toque-replica"].startswith("engine_")
            assert http.get("/health/ready").json()["checks"]["engine"] == "ok"
        wait_until(lambda: http.post(CHAT, json=ASK).status_code == 503, "it is gone", seconds=10)
    assert API_KEY not in str(stand_in.bodies)


def test_while_a_job_trains_requests_wait_or_are_refused(settings: Settings, database: Database) -> None:
    engine = EngineStandIn()
    patient = settings.model_copy(update={"engine_wait_seconds": 20.0})
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        socket = str(Path(folder) / "engine.sock")
        with run_engine(engine, socket):
            row = register_engine(database, f"unix:{socket}", status="asleep", detail="a job trains")
            with run_service(settings) as service, service.http() as http:
                refused = http.post("/v1/chat/completions", json=ASK)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
                assert "a job trains" in refused.json()["error"]["message"]
                assert "engine" not in http.get("/health/ready").json().get("error", {}).get("message", "")
                assert http.get("/health/ready").json()["checks"]["engine"] == "ok"
            with run_service(patient) as service, ThreadPoolExecutor() as waiting, service.http() as http:
                answer = waiting.submit(http.post, "/v1/chat/completions", json=ASK)
                with pytest.raises(TimeoutError):
                    answer.result(timeout=0.5)
                with database.writer() as session:
                    session.get_one(Engine, row).status = "ready"
                response = answer.result(timeout=10)
                assert response.status_code == 200
                assert float(response.headers["x-toque-queue-ms"]) > 500
