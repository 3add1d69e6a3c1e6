"""Requests and tokens a minute, and requests at once: what is counted, and what the client is told."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.resources.admin.organization import Organization
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from app.auth import service as auth_service
from app.auth.models import ApiKey, Project
from app.core.database import Database
from app.core.settings import Settings
from app.limits import quota, shared_store
from app.limits import service as limits_service
from app.limits.headers import duration, retry_headers
from app.limits.models import RateWindow, RequestsInFlight
from app.limits.quota import ExhaustedError, Quota
from app.limits.schemas import UpdateRateLimit
from app.limits.shared_store import SharedStore
from tests.support.cache_clock import CHANGES, CacheClock
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.service import API_KEY, BASE_MODEL, OTHER_KEY, Service, run_service
from tests.support.waiting import wait_until

PATH = "/v1/chat/completions"
SetLimit = Callable[..., None]


@pytest.fixture
def project_id(database: Database) -> str:
    with database.reader() as session:
        return session.scalars(select(Project.id).where(Project.name == "default")).one()


@pytest.fixture
def set_limit(database: Database, settings: Settings, project_id: str) -> SetLimit:
    """Sets limits of the first project, as another process does."""

    def set_limit(*, model: str = "all", key_id: str = "", **limits: int | None) -> None:
        change = UpdateRateLimit.model_validate(limits)
        with database.writer() as session:
            limits_service.set_limit(session, settings, project_id, model, change, key_id)

    return set_limit


@pytest.fixture
def admin(service: Service) -> Iterator[Organization]:
    with OpenAI(base_url=f"{service.url}/v1", admin_api_key=API_KEY, api_key="none", max_retries=0) as client:
        yield client.admin.organization


def ask(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    return http.post(PATH, json=ASK | {"max_tokens": 10} | fields)


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 429, answer.text
    return answer.json()["error"]


def test_nothing_is_limited_unless_it_is_set(http: httpx2.Client, engine: EngineStandIn) -> None:
    answers = [ask(http) for _ in range(5)]
    assert {each.status_code for each in answers} == {200}
    assert not [name for name in answers[0].headers if name.startswith("x-ratelimit")]


def test_requests_a_minute(
    service: Service, http: httpx2.Client, engine: EngineStandIn, set_limit: SetLimit
) -> None:
    set_limit(max_requests_per_1_minute=3)
    answers = [ask(http) for _ in range(3)]
    assert [each.headers["x-ratelimit-remaining-requests"] for each in answers] == ["2", "1", "0"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
    assert re.fullmatch(r"1m0s|5\d(\.\d+)?s", answers[0].headers["x-ratelimit-reset-requests"])
    refused = ask(http)
    error = error_of(refused)
    assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
    assert error["message"].startswith(
        "Rate limit reached on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in "
    )
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert 0 < int(refused.headers["retry-after-ms"]) <= 60_000
    assert len(engine.bodies) == 3
    with service.http(OTHER_KEY) as other:
        assert ask(other).status_code == 200, "another project's requests are its own"


def test_the_official_client_waits_and_succeeds(
    service: Service,
    engine: EngineStandIn,
    set_limit: SetLimit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quota, "WINDOW_SECONDS", 1.0)
    set_limit(max_requests_per_1_minute=1)
    with OpenAI(base_url=f"{service.url}/v1", api_key=API_KEY, max_retries=1) as client:
        for _ in range(3):
            assert client.chat.completions.create(**ASK).choices[0].message.content == "Leek."
    assert len(engine.bodies) == 3


def test_a_body_is_not_read_that_is_refused_anyway(
    service: Service, http: httpx2.Client, engine: EngineStandIn, set_limit: SetLimit
) -> None:
    set_limit(max_requests_per_1_minute=1)
    assert ask(http).status_code == 200
    assert error_of(ask(http))["type"] == "requests"
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b" " * 2**16

    try:
        answer = http.post(PATH, content=body(), headers={"content-type": "application/json"})
        assert answer.status_code == 429
    except httpx2.TransportError:  # the connection is closed while more is sent
        pass
    assert sent < 1000


def await_settled(database: Database, least: int, most: int) -> None:
    """Wait until PostgreSQL knows how many tokens were used, which it is told after the answers are sent."""
    if database.engine.dialect.name != "postgresql":
        return

    def is_settled() -> bool:
        with database.reader() as session:
            used = session.scalars(select(RateWindow.used).where(RateWindow.name.endswith(":tokens"))).one()
        return least <= used <= most

    wait_until(is_settled, "what was not used is given back")


def test_tokens_are_reserved_and_then_settled(
    database: Database, http: httpx2.Client, engine: EngineStandIn, set_limit: SetLimit
) -> None:
    set_limit(max_tokens_per_1_minute=1000)
    during: list[int] = []
    engine.on_request = lambda: during.append(len(engine.bodies))
    first = ask(http, max_tokens=500)
    reserved = 1000 - int(first.headers["x-ratelimit-remaining-tokens"])
    assert 500 + 32 < reserved < 500 + 150
    await_settled(database, 8, 8)
    second = ask(http, max_tokens=500)
    assert 1000 - int(second.headers["x-ratelimit-remaining-tokens"]) == reserved + 8, "the first used 8"
    await_settled(database, 16, 16)
    refused = ask(http, max_tokens=900)
    error = error_of(refused)
    assert error["type"] == "tokens"
    assert "Used 16, Requested" in error["message"]
    assert ask(http).status_code == 200, "smaller ones still fit"
    without_bound = http.post(PATH, json=ASK)
    assert error_of(without_bound)["type"] == "tokens", "it may need all that there are"
    too_large = ask(http, max_tokens=2000)
    assert error_of(too_large)["message"].startswith("Request too large on tokens per min (TPM): Limit 1000")
    assert too_large.headers["x-should-retry"] == "false"


def test_whoever_leaves_a_stream_pays_for_what_was_sent(
    service: Service, engine: EngineStandIn, database: Database, set_limit: SetLimit
) -> None:
    set_limit(max_tokens_per_1_minute=10_000, max_concurrent_requests=1)
    engine.behaviour = "endless"
    with service.http() as http:
        with http.stream("POST", PATH, json=ASK | {"max_tokens": 9000, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert error_of(ask(http))["message"].startswith("Rate limit reached on concurrent requests")
        assert engine.disconnected.wait(60)
        engine.behaviour = "answer"
        await_settled(database, 0, 3000)
        answer = wait_until(lambda: (found := ask(http)).status_code == 200 and found, "it has left")
    used = 10_000 - int(answer.headers["x-ratelimit-remaining-tokens"])
    own = 32 + len(engine.bodies[-1]["messages"][0]["content"]) // 2 + 10
    assert own + 32 < used < 3000, "its prompt, and what was sent until it left"


def test_whoever_does_not_wait_for_a_whole_answer_pays_for_its_prompt(
    service: Service, engine: EngineStandIn, set_limit: SetLimit
) -> None:
    set_limit(max_tokens_per_1_minute=10_000)
    engine.behaviour = "silent"
    prompt = [{"role": "user", "content": "soup " * 400}]
    with service.http() as http:
        whole = http.build_request("POST", PATH, json=ASK | {"messages": prompt, "max_tokens": 5000})
        with socket.create_connection((whole.url.host, whole.url.port)) as connection:
            head = [b"POST %b HTTP/1.1" % PATH.encode(), *(b"%b: %b" % each for each in whole.headers.raw)]
            connection.sendall(b"\r\n".join([*head, b"", whole.read()]))
            wait_until(lambda: engine.bodies, "the engine is asked")
        assert engine.disconnected.wait(60)
        engine.behaviour = "answer"

        def used() -> int:
            return 10_000 - int(ask(http).headers["x-ratelimit-remaining-tokens"])

        wait_until(lambda: used() < 3000, "what was taken for the answer is given back")
        assert used() > 1000


def test_what_is_refused_by_the_engine_costs_no_tokens(
    http: httpx2.Client, engine: EngineStandIn, database: Database, set_limit: SetLimit
) -> None:
    set_limit(max_tokens_per_1_minute=1000, max_requests_per_1_minute=10)
    engine.behaviour = "refuse"
    refused = ask(http, max_tokens=700)
    assert refused.status_code == 400
    assert refused.headers["x-ratelimit-remaining-requests"] == "9"
    await_settled(database, 0, 0)
    engine.behaviour = "answer"
    assert ask(http, max_tokens=700).status_code == 200


def test_a_key_and_a_model_have_limits_of_their_own(
    service: Service, engine: EngineStandIn, database: Database, project_id: str, set_limit: SetLimit
) -> None:
    with database.writer() as session:
        key, secret = auth_service.create_key(session, project_id, "limited")
    set_limit(key_id=key.id, max_requests_per_1_minute=1)
    set_limit(model=BASE_MODEL, max_requests_per_1_minute=3)
    with service.http() as http, service.http(secret) as limited:
        assert ask(limited).headers["x-ratelimit-remaining-requests"] == "0", "the tighter of the two"
        assert ask(limited).status_code == 429
        assert ask(http).headers["x-ratelimit-remaining-requests"] == "1", "what is refused is not counted"
        assert ask(http).status_code == 200
        assert ask(http).status_code == 429


def test_limits_are_set_as_openai_has_it(
    admin: Organization,
    http: httpx2.Client,
    engine: EngineStandIn,
    database: Database,
    project_id: str,
    cache_clock: CacheClock,
) -> None:
    assert ask(http).status_code == 200
    limits = list(admin.projects.rate_limits.list_rate_limits(project_id))
    assert [(each.id, each.model) for each in limits][:2] == [
        ("rl-all", "all"),
        (f"rl-{BASE_MODEL}", BASE_MODEL),
    ]
    assert {each.max_requests_per_1_minute for each in limits} == {None}
    changed = admin.projects.rate_limits.update_rate_limit(
        "rl-all", project_id=project_id, max_requests_per_1_minute=1
    )
    assert (changed.max_requests_per_1_minute, changed.max_tokens_per_1_minute) == (1, None)
    assert next(iter(admin.projects.rate_limits.list_rate_limits(project_id))) == changed
    cache_clock.pass_time(CHANGES)
    assert [ask(http).status_code for _ in range(2)] == [200, 429]
    path = f"/v1/organization/projects/{project_id}/rate_limits/rl-all"
    assert (
        http.post(path, json={"max_requests_per_1_minute": None}).json()["max_requests_per_1_minute"] is None
    )
    cache_clock.pass_time(CHANGES)
    assert ask(http).status_code == 200
    with database.reader() as session:
        key_id = session.scalars(select(ApiKey.id).where(ApiKey.project_id == project_id)).first()
    of_key = f"/v1/organization/projects/{project_id}/api_keys/{key_id}/rate_limits"
    set_one = http.post(f"{of_key}/rl-{BASE_MODEL}", json={"max_concurrent_requests": 5}).json()
    assert set_one["max_concurrent_requests"] == 5
    assert set_one in http.get(of_key).json()["data"]
    logged = http.get("/v1/organization/audit_logs", params={"event_types[]": "rate_limit.updated"}).json()
    assert logged["data"][0]["after"] == {"max_requests_per_1_minute": None}


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("place", "body", "status", "param"),
    [
        ("rate_limits/rl-none", {"max_requests_per_1_minute": 1}, 404, "rate_limit_id"),
        ("rate_limits/rl-all", {"max_requests_per_1_minute": 0}, 400, "max_requests_per_1_minute"),
        ("rate_limits/rl-all", {"max_tokens_per_1_minute": "5"}, 400, "max_tokens_per_1_minute"),
        ("rate_limits/rl-all", {"max_images_per_1_minute": 5}, 400, "max_images_per_1_minute"),
        ("api_keys/key_none/rate_limits/rl-all", {}, 404, "api_key_id"),
    ],
)
def test_what_cannot_be_set(
    http: httpx2.Client, project_id: str, place: str, body: dict[str, Any], status: int, param: str
) -> None:
    answer = http.post(f"/v1/organization/projects/{project_id}/{place}", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_four_gateways_together_overrun_nothing(
    settings: Settings,
    database: Database,
    engine: EngineStandIn,
    set_limit: SetLimit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With SQLite there is one gateway, whose callers are as many."""
    monkeypatch.setattr(quota, "WINDOW_SECONDS", 3600.0)  # another would allow as much again
    set_limit(max_requests_per_1_minute=100, max_tokens_per_1_minute=100_000)
    set_limit(model=BASE_MODEL, max_concurrent_requests=7)
    in_flight = most = 0
    lock = threading.Lock()
    answered = threading.Semaphore(0)

    def count() -> None:
        nonlocal in_flight, most
        with lock:
            in_flight += 1
            most = max(most, in_flight)
        answered.acquire(timeout=0.02)
        with lock:
            in_flight -= 1

    engine.on_request = count
    gateways = 4 if database.engine.dialect.name == "postgresql" else 1
    with ExitStack() as stack:
        services = [stack.enter_context(run_service(settings)) for _ in range(gateways)]
        clients = [stack.enter_context(each.http()) for each in services]

        def keep_asking(number: int) -> int:
            http, succeeded = clients[number % gateways], 0
            while True:
                answer = ask(http)
                succeeded += answer.status_code == 200
                if answer.status_code == 429 and "requests per min" in answer.text:
                    return succeeded

        with ThreadPoolExecutor(16) as threads:
            succeeded = sum(threads.map(keep_asking, range(16)))
    assert succeeded == len(engine.bodies) == 100, "exactly what is allowed"
    assert most <= 7


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_requests_that_begin_and_end_together_never_wait_for_each_other(database: Database) -> None:
    store = SharedStore(database)
    wanted = [
        (Quota("rl_1:tokens", "proj_t", "tokens", 10**9), 5),
        (Quota("rl_2:concurrent_requests", "proj_t", "concurrent_requests", 1000), 1),
    ]

    async def ask() -> None:
        for _ in range(20):
            taken = await store.take(wanted)
            await store.give_back([(each, 1) for each in taken])

    async def ask_together() -> None:
        await asyncio.gather(*[ask() for _ in range(16)])

    asyncio.run(ask_together())
    with database.reader() as session:
        assert session.scalars(select(RateWindow.used)).one() == 16 * 20 * 4
        assert session.scalars(select(RequestsInFlight.count)).one() == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_minute_that_ends_while_a_request_is_refused_is_not_waited_for(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SharedStore(database)
    wanted = [(Quota("rl_1:requests", "proj_t", "requests", 1), 1)]
    asyncio.run(store.take(wanted))
    refuse = shared_store._refuse

    def refuse_late(session: Session, wanted: Any) -> None:
        session.execute(update(RateWindow).values(ends_at=0.0))
        refuse(session, wanted)

    with monkeypatch.context() as patched, pytest.raises(ExhaustedError) as refused:
        patched.setattr(shared_store, "_refuse", refuse_late)
        asyncio.run(store.take(wanted))
    assert refused.value.seconds_left == 0.0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_request_ends_though_the_database_is_not_told(
    database: Database, http: httpx2.Client, engine: EngineStandIn, set_limit: SetLimit
) -> None:
    def rename(table: str, name: str) -> None:
        with database.writer() as session:
            session.execute(text(f"ALTER TABLE {table} RENAME TO {name}"))

    set_limit(max_concurrent_requests=1)
    engine.on_request = lambda: rename("requests_in_flight", "hidden")
    assert ask(http).status_code == 200
    engine.on_request = lambda: None
    rename("hidden", "requests_in_flight")
    assert ask(http).status_code == 200


def test_limits_of_an_archived_project_are_not_changed(http: httpx2.Client) -> None:
    project = http.post("/v1/organization/projects", json={"name": "soups"}).json()["id"]
    assert http.post(f"/v1/organization/projects/{project}/archive").status_code == 200
    limit = f"/v1/organization/projects/{project}/rate_limits/rl-all"
    answer = http.post(limit, json={"max_requests_per_1_minute": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "project_archived")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0ms"),
        (0.02, "20ms"),
        (1, "1s"),
        (7.66, "7.66s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (90.5, "1m30.5s"),
    ],
)
def test_a_time_is_written_as_openai_writes_it(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_when_to_try_again() -> None:
    assert retry_headers(0.02) == {"retry-after": "1", "retry-after-ms": "20"}
    assert retry_headers(59.2) == {"retry-after": "60", "retry-after-ms": "59200"}


def test_the_official_client_has_an_error_for_it(
    client: OpenAI, engine: EngineStandIn, set_limit: SetLimit
) -> None:
    set_limit(max_requests_per_1_minute=1)
    client.chat.completions.create(**ASK)
    with pytest.raises(openai.RateLimitError) as refused:
        client.responses.create(model=BASE_MODEL, input="Soup?")
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "requests")
