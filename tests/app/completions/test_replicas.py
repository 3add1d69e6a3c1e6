"""Several engines of one base: which is asked, and what happens when one fails."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from pydantic import SecretStr
from sqlalchemy import select

from app.auth.models import Project
from app.completions import vllm_client
from app.completions.models import Engine, EngineDemand
from app.completions.replica import _DOUBT_SECONDS, _STUCK_SECONDS
from app.completions.replicas import _PROBE_EVERY_SECONDS
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
            # Homes follow from the ids, so that they are the same in every run.
            engines[register_engine(database, f"unix:{socket}", id=f"engine_{number}")] = stand_in
        yield engines


@pytest.fixture
def replica(two: dict[str, EngineStandIn], http: httpx2.Client) -> str:
    """The one that is not the home of `ASK`, so that the other comes first."""
    return other_than(home_of(ASK, http, two), two)


def home_of(request: dict[str, Any], http: httpx2.Client, engines: dict[str, EngineStandIn]) -> str:
    home = ask(http, **request).headers["x-toque-replica"]
    for engine in engines.values():
        engine.bodies.clear()
    return home


def ask(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    response = http.post(CHAT, json=ASK | fields)
    assert response.status_code == 200, response.text
    return response


def prompts(count: int, beginning: str = "Soup") -> list[dict[str, Any]]:
    """Requests that share no beginning."""
    return [{"messages": [{"role": "user", "content": f"{number} {beginning}"}]} for number in range(count)]


def other_than(one: str, engines: dict[str, EngineStandIn]) -> str:
    return next(engine_id for engine_id in engines if engine_id != one)


def add_adapter(database: Database, name: str) -> None:
    with database.writer() as session:
        project = session.query(Project).filter_by(name="default").one()
        session.add(Adapter(name=name, project_id=project.id, base_model=BASE_MODEL, storage_key="none"))


def test_conversations_are_spread_and_each_stays_where_its_beginning_is_cached(
    two: dict[str, EngineStandIn], http: httpx2.Client
) -> None:
    homes = [ask(http, **prompt).headers["x-toque-replica"] for prompt in prompts(24)]
    assert all(homes.count(engine_id) >= 5 for engine_id in two)
    for prompt, home in zip(prompts(24), homes, strict=True):
        goes_on = [*prompt["messages"], {"role": "assistant", "content": "Leek."}, ASK["messages"][0]]
        asked_at = time.monotonic()
        answer = ask(http, messages=goes_on, stream=True)
        assert answer.headers["x-toque-replica"] == home
        assert 0 <= float(answer.headers["x-toque-queue-ms"]) <= 1000 * (time.monotonic() - asked_at)


def test_the_same_beginning_in_other_forms_has_a_home_of_its_own(
    two: dict[str, EngineStandIn], http: httpx2.Client
) -> None:
    """Instructions of a response count like a system message, and a prompt's parts like one text."""
    for path, form in (
        ("/v1/completions", lambda text: {"prompt": [text, "other"]}),
        ("/v1/completions", lambda text: {"prompt": [ord(letter) for letter in text]}),
        ("/v1/responses", lambda text: {"input": text, "instructions": "Be brief."}),
        (CHAT, lambda text: {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]}),
    ):
        homes: list[set[str]] = []
        for number in range(12):
            answers = [
                http.post(path, json={"model": BASE_MODEL, **form(f"{number} soups")}) for _ in range(2)
            ]
            homes.append({answer.headers["x-toque-replica"] for answer in answers})
        assert all(len(home) == 1 for home in homes)
        assert set.union(*homes) == set(two)


def test_a_replica_with_more_than_its_share_gets_no_more(
    two: dict[str, EngineStandIn], replica: str, client: OpenAI, http: httpx2.Client
) -> None:
    busy = other_than(replica, two)
    two[busy].behaviour = "pause"
    with ExitStack() as stack:
        for _ in range(2):
            stream = stack.enter_context(client.chat.completions.create(**ASK, stream=True))
            next(iter(stream))
            assert stream.response.headers["x-toque-replica"] == busy
        assert {ask(http).headers["x-toque-replica"] for _ in range(4)} == {replica}


def test_an_adapter_stays_at_its_home(
    two: dict[str, EngineStandIn], database: Database, http: httpx2.Client
) -> None:
    names = [f"ft:{BASE_MODEL}:default::{number}" for number in range(8)]
    for name in names:
        add_adapter(database, name)
    homes = {name: ask(http, model=name).headers["x-toque-replica"] for name in names}
    assert set(homes.values()) == set(two)
    for name in names:
        again = {ask(http, model=name, **prompt).headers["x-toque-replica"] for prompt in prompts(3)}
        assert again == {homes[name]}


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
    assert [len(two[broken].bodies), len(two[replica].bodies)] == [1, 1]


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
    assert two[replica].bodies == []


@pytest.mark.parametrize("behaviour", ["refuse", "fail"])
def test_what_may_be_the_requests_own_fault_is_not_asked_again(
    two: dict[str, EngineStandIn], replica: str, client: OpenAI, behaviour: str
) -> None:
    two[other_than(replica, two)].behaviour = behaviour
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**ASK)
    assert caught.value.response.headers["x-toque-replica"] == other_than(replica, two)
    assert two[replica].bodies == []


def test_when_both_break_it_is_503(two: dict[str, EngineStandIn], http: httpx2.Client) -> None:
    for engine in two.values():
        engine.behaviour = "break"
    response = http.post(CHAT, json=ASK)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert [len(engine.bodies) for engine in two.values()] == [1, 1]


def test_an_ill_engine_is_out_once_a_request_has_failed_and_comes_back(
    two: dict[str, EngineStandIn], replica: str, http: httpx2.Client
) -> None:
    ill = other_than(replica, two)
    two[ill].behaviour = "ill"
    failed = http.post(CHAT, json=ASK)
    assert (failed.status_code, failed.headers["x-toque-replica"]) == (503, ill)
    wait_until(lambda: http.post(CHAT, json=ASK).status_code == 200, "the ill engine is out")
    assert replicas_seen(http) == {replica}
    two[ill].behaviour = "answer"
    wait_until(lambda: replicas_seen(http) == set(two), "it is back")


def replicas_seen(http: httpx2.Client) -> set[str]:
    """The replicas that some requests go to, which are all but surely all that are up."""
    return {ask(http, **prompt).headers["x-toque-replica"] for prompt in prompts(16, "pies")}


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
    assert max(_DOUBT_SECONDS, _STUCK_SECONDS) + _PROBE_EVERY_SECONDS + vllm_client._PROBE_SECONDS < 10
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
        answers = [each.result(timeout=30) for each in waiting]
        assert {answer.headers["x-toque-replica"] for answer in answers} == {alive}
        assert replicas_seen(http) == {alive}
        processes[frozen].send_signal(signal.SIGCONT)
        wait_until(lambda: replicas_seen(http) == set(processes), "it is back")


def test_an_engine_that_started_anew_is_asked_with_its_new_key(
    two: dict[str, EngineStandIn], database: Database, http: httpx2.Client
) -> None:
    assert replicas_seen(http) == set(two)
    restarted = next(iter(two))
    two[restarted].api_key = "new key"
    assert replicas_seen(http) == set(two) - {restarted}  # asked in vain, and then the other
    with database.writer() as session:
        session.get_one(Engine, restarted).api_key = "new key"
    wait_until(lambda: replicas_seen(http) == set(two), "the new key is known")


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
        wait_until(lambda: replicas_seen(http) == {replica}, "it is asked no more")
        before = two[leaving].chunks_sent
        wait_until(lambda: next(chunks) and two[leaving].chunks_sent > before + 50, "the stream goes on")


def test_engines_of_others_are_given_by_url(
    database: Database, folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_client, "_PROBE_SECONDS", 60.0)  # it is not down for being slow
    stand_in = EngineStandIn()
    address = EngineAddress(
        base_model=BASE_MODEL, url=f"unix:{folder / 'given'}", api_key=SecretStr(ENGINE_KEY)
    )
    given = settings.model_copy(update={"engine_urls": [address]})
    with run_service(given) as service, service.http() as http:
        with run_engine(stand_in, str(folder / "given")):
            wait_until(lambda: http.post(CHAT, json=ASK).status_code == 200, "it is found")
            assert ask(http).headers["x-toque-replica"].startswith("engine_")
            assert http.get("/health/ready").json()["checks"]["engine"] == "ok"
        wait_until(lambda: http.post(CHAT, json=ASK).status_code == 503, "it is gone")
    assert API_KEY not in str(stand_in.bodies)


def test_while_a_job_trains_requests_wait_or_are_refused(settings: Settings, database: Database) -> None:
    engine = EngineStandIn()
    patient = settings.model_copy(update={"engine_wait_seconds": 120.0})

    def demand() -> Sequence[EngineDemand]:
        """Of each gateway that was asked."""
        with database.reader() as session:
            return session.scalars(select(EngineDemand)).all()

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
                wait_until(lambda: len(demand()) == 2, "it waits, and that is written down")
                with pytest.raises(TimeoutError):
                    answer.result(timeout=0.5)
                with database.writer() as session:
                    session.get_one(Engine, row).status = "ready"
                response = answer.result(timeout=120)
                assert response.status_code == 200
                assert float(response.headers["x-toque-queue-ms"]) > 500
