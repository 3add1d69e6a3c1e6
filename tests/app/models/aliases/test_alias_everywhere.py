"""An alias as `model`: whom it leads to, in every process, while it moves."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator

import httpx2
import openai
import pytest
from openai import OpenAI

from app.core.database import Database
from app.core.settings import Settings
from app.models.adapters import service as adapters_service
from tests.support.aliases import NAME, add_model, put
from tests.support.cache_clock import MOVES, CacheClock
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.service import Service, run_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database

CHAT = "/v1/chat/completions"


@pytest.fixture
def models(database: Database) -> list[str]:
    return [add_model(database, suffix) for suffix in ("a", "b")]


@pytest.fixture
def second(service: Service, settings: Settings) -> Iterator[httpx2.Client]:
    """Another API process's worth of service on the same database."""
    with run_service(settings) as other, other.http() as http:
        yield http


def test_the_answer_is_the_models_own(
    http: httpx2.Client, client: OpenAI, engine: EngineStandIn, models: list[str]
) -> None:
    put(http, model=models[0])
    raw = client.chat.completions.with_raw_response.create(**ASK | {"model": NAME})
    assert raw.headers["x-toque-model"] == models[0]
    assert raw.parse().model == models[0], "the engine's own word, which never changes its meaning"
    streamed = client.chat.completions.create(**ASK | {"model": NAME}, stream=True)
    assert {chunk.model for chunk in streamed} == {models[0]}
    legacy = client.completions.with_raw_response.create(model=NAME, prompt="Soup")
    assert legacy.headers["x-toque-model"] == models[0]
    assert [body["model"] for body in engine.bodies] == [models[0]] * 3
    base = client.chat.completions.with_raw_response.create(**ASK | {"model": "gpt-4o-mini"})
    assert base.headers["x-toque-model"] == ASK["model"]


def test_a_move_is_seen_everywhere_within_two_seconds(
    http: httpx2.Client,
    second: httpx2.Client,
    engine: EngineStandIn,
    models: list[str],
    cache_clock: CacheClock,
) -> None:
    put(http, model=models[0])

    def answered(by: httpx2.Client) -> str:
        response = by.post(CHAT, json=ASK | {"model": NAME})
        assert response.status_code == 200, response.text
        return response.headers["x-toque-model"]

    assert {answered(http), answered(second)} == {models[0]}
    for version, model in ((1, models[1]), (2, models[0])):
        put(http, model=model, version=version)
        # And nobody sees the old one again.
        for _ in range(5):
            cache_clock.pass_time(MOVES)
            assert {answered(http), answered(second)} == {model}


def test_no_request_fails_while_it_moves(
    http: httpx2.Client,
    service: Service,
    second: httpx2.Client,
    engine: EngineStandIn,
    models: list[str],
) -> None:
    put(http, model=models[0])
    stop = threading.Event()
    statuses, seen = Counter[int](), Counter[str]()

    def ask(by: httpx2.Client) -> None:
        while not stop.is_set():
            response = by.post(CHAT, json=ASK | {"model": NAME, "stream": True})
            statuses[response.status_code] += 1
            seen[response.headers.get("x-toque-model", "")] += 1
            assert response.text.endswith("data: [DONE]\n\n")

    with service.http() as first:
        threads = [threading.Thread(target=ask, args=(by,)) for by in (first, second)]
        for thread in threads:
            thread.start()
        for version in range(1, 9):
            asked = sum(statuses.values())
            put(http, model=models[version % 2], version=version)
            wait_until(lambda asked=asked: sum(statuses.values()) > asked + 10, "requests go on")
        put(http, split=[{"model": model, "weight": 1} for model in models], version=9)
        wait_until(lambda: min(seen[model] for model in models) > 5, "both are asked")
        stop.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert set(seen) == set(models)


def test_a_split_is_sticky_and_counted(
    http: httpx2.Client, second: httpx2.Client, engine: EngineStandIn, models: list[str]
) -> None:
    put(http, split=[{"model": models[0], "weight": 3}, {"model": models[1], "weight": 1}])
    began = int(time.time())

    def answered(user: str | None, by: httpx2.Client) -> str:
        response = by.post(CHAT, json=ASK | {"model": NAME} | ({"user": user} if user else {}))
        assert response.status_code == 200, response.text
        return response.headers["x-toque-model"]

    users = [f"user-{number}" for number in range(30)]
    first = {user: answered(user, http) for user in users}
    assert {user: answered(user, second) for user in users} == first
    assert set(first.values()) == set(models)
    assert {answered(None, http) for _ in range(40)} == set(models)
    assert "user" not in engine.bodies[0]

    by_model = Counter(body["model"] for body in engine.bodies)
    assert http.post(CHAT, json=ASK | {"model": models[0]}).status_code == 200, "not by the alias"

    def counted() -> bool:
        params = {"start_time": began, "group_by": "model", "aliases": NAME}
        buckets = http.get("/v1/usage", params=params).json()["data"]
        found = Counter[str]()
        for bucket in buckets:
            for result in bucket["results"]:
                found[result["model"]] += result["num_model_requests"]
        return found == by_model

    wait_until(counted, "each model's usage by the alias is counted")

    def sum_of_all() -> int:
        buckets = http.get("/v1/usage", params={"start_time": began}).json()["data"]
        return sum(result["num_model_requests"] for bucket in buckets for result in bucket["results"])

    wait_until(
        lambda: sum_of_all() == by_model.total() + 1, "and so is what was asked by the model's own name"
    )


def test_a_quarantined_model_leaves_its_users_to_the_others(
    http: httpx2.Client,
    client: OpenAI,
    database: Database,
    engine: EngineStandIn,
    models: list[str],
    cache_clock: CacheClock,
) -> None:
    put(http, split=[{"model": model, "weight": 1} for model in models])
    users = [f"user-{number}" for number in range(20)]

    def quarantine(model: str) -> None:
        with database.writer() as session:
            adapters_service.quarantine(session, model, "NaN in its weights")

    def models_of_users() -> set[str]:
        answers = [http.post(CHAT, json=ASK | {"model": NAME, "user": user}) for user in users]
        assert {answer.status_code for answer in answers} == {200}
        return {answer.headers["x-toque-model"] for answer in answers}

    assert models_of_users() == set(models)
    quarantine(models[1])
    cache_clock.pass_time(MOVES)
    assert models_of_users() == {models[0]}, "the bad one is asked no more"
    quarantine(models[0])
    cache_clock.pass_time(MOVES)
    with pytest.raises(openai.APIStatusError) as none_is_left:
        client.chat.completions.create(**ASK | {"model": NAME})
    assert (none_is_left.value.status_code, none_is_left.value.code) == (424, "model_quarantined")


def test_an_alias_that_ends_answers_no_more(
    http: httpx2.Client, engine: EngineStandIn, models: list[str], cache_clock: CacheClock
) -> None:
    put(http, model=models[0])

    def status() -> int:
        return http.post(CHAT, json=ASK | {"model": NAME}).status_code

    assert status() == 200
    http.delete(f"/v1/aliases/{NAME}")
    cache_clock.pass_time(MOVES)
    assert status() == 404
    put(http, model=models[1])
    assert status() == 200
