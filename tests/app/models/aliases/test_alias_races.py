"""Many at once: of those who saw the same version one wins, and a model is either deleted or pointed to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import httpx2
from openai import OpenAI

from app.core.database import Database
from tests.support.aliases import ADDRESS, add_model, put
from tests.support.racing import race
from tests.support.service import Service

RACERS = 6


def pointing(model: str, version: int | None) -> Callable[[httpx2.Client], httpx2.Response]:
    body = {"model": model} | ({} if version is None else {"version": version})
    return lambda http: http.put(ADDRESS, json=body)


def test_one_of_many_wins_each_version(service: Service, database: Database, http: httpx2.Client) -> None:
    models = [add_model(database, f"m{number}") for number in range(RACERS)]
    for version in (None, 1, 2, 3):
        answers = race(service, *(pointing(model, version) for model in models))
        assert Counter(answer.status_code for answer in answers) == {200: 1, 409: RACERS - 1}
        [won] = [answer.json() for answer in answers if answer.status_code == 200]
        assert won["version"] == (version or 0) + 1
        assert http.get(ADDRESS).json() == won
        codes = {answer.json()["error"]["code"] for answer in answers if answer.status_code == 409}
        assert codes == {"alias_version_conflict"}
    history = http.get(f"{ADDRESS}/history").json()["data"]
    assert [change["version"] for change in history] == [4, 3, 2, 1]


def test_two_who_roll_back_at_once_go_back_one_step(
    service: Service, database: Database, http: httpx2.Client
) -> None:
    models = [add_model(database, f"m{number}") for number in range(3)]
    for number, model in enumerate(models):
        put(http, model=model, **({"version": number} if number else {}))
    answers = race(service, *[lambda http: http.post(f"{ADDRESS}/rollback", json={"version": 3})] * RACERS)
    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: RACERS - 1}
    assert (http.get(ADDRESS).json()["model"], http.get(ADDRESS).json()["version"]) == (models[1], 4)


def test_a_model_is_deleted_or_pointed_to(
    service: Service, database: Database, http: httpx2.Client, client: OpenAI
) -> None:
    version, outcomes = 0, Counter[tuple[int, int]]()
    for number in range(8):
        model = add_model(database, f"m{number}")
        pointed, deleted = race(
            service,
            pointing(model, version or None),
            lambda http, model=model: http.delete(f"/v1/models/{model}"),
        )
        outcomes[pointed.status_code, deleted.status_code] += 1
        there = {each.id for each in client.models.list()}
        if pointed.status_code == 200:
            version += 1
            assert model in there
        else:
            assert model not in there
    assert set(outcomes) <= {(200, 409), (404, 200)}, outcomes
