"""Promotions over HTTP: an alias moves if the rules hold, once, and says on what grounds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx2
import pytest

from app.core.database import Database
from app.models.adapters import service as adapters_service
from tests.support.aliases import ADDRESS, NAME, add_model, put, refused
from tests.support.comparison_results import add_comparison, candidate, pair, regression, results
from tests.support.racing import race
from tests.support.service import BASE_MODEL, OTHER_KEY, Service

PROMOTE = f"{ADDRESS}/promote"
RULES = {
    "min_score": 0.8,
    "beats": ["base", {"candidate": "prompted", "delta": 0.05}],
    "max_latency_ratio": 1.5,
    "max_regression": 0.05,
}


@pytest.fixture
def models(database: Database) -> list[str]:
    return [add_model(database, suffix) for suffix in ("old", "new")]


@pytest.fixture
def comparison(database: Database, models: list[str]) -> str:
    """In which the new model is better than everybody but the old one."""
    old, new = models
    candidates = [
        candidate("base", "base", score=0.1),
        candidate("system prompt", "prompt", score=0.4),
        candidate("old", model=old, score=0.85),
        candidate("new", model=new, score=0.9, median=1.2),
    ]
    pairs = [
        pair("new", "base", 0.8),
        pair("new", "system prompt", 0.5),
        pair("new", "old", 0.05),
        pair("old", "base", 0.75),
    ]
    return add_comparison(database, results(candidates, pairs, [regression("new", 0.02)]))


def test_a_model_that_deserves_it_is_promoted(
    http: httpx2.Client, models: list[str], comparison: str
) -> None:
    body = {"model": models[1], "comparison": comparison, "rules": RULES, "reason": "release 7"}
    dry = http.post(PROMOTE, json=body | {"dry_run": True}).json()
    assert (dry["passed"], dry["promoted"], dry["dry_run"], dry["version"]) == (True, False, True, None)
    assert http.get(ADDRESS).status_code == 404

    done = http.post(PROMOTE, json=body)
    assert done.status_code == 200, done.text
    promotion = done.json()
    assert promotion["rules"] == dry["rules"]
    assert [(rule["rule"], rule["passed"], rule["required"]) for rule in promotion["rules"]] == [
        ("min_score", True, 0.8),
        ("beats:base", True, 0.0),
        ("beats:prompted", True, 0.05),
        ("max_latency_ratio", True, 1.5),
        ("max_regression", True, 0.05),
    ]
    assert [rule["actual"] for rule in promotion["rules"]] == pytest.approx([0.9, 0.7, 0.4, 1.2, 0.02])
    assert (promotion["promoted"], promotion["version"], promotion["alias"]) == (True, 1, NAME)
    assert promotion["split"] == [{"model": models[1], "weight": 1.0}]
    assert http.get(ADDRESS).json()["model"] == models[1]
    [change] = http.get(f"{ADDRESS}/history").json()["data"]
    assert (change["kind"], change["comparison"], change["reason"]) == ("promoted", comparison, "release 7")
    assert change["rules"] == promotion["rules"]
    assert change["by"]["name"] == "TOQUE_API_KEY"


def test_a_gate_that_says_no_gives_every_figure(
    http: httpx2.Client, models: list[str], comparison: str
) -> None:
    put(http, model=models[0])
    rules = RULES | {"beats": ["current", "base"], "min_score": 0.95}
    body = {"model": models[1], "comparison": comparison, "rules": rules, "version": 1}
    with refused(409, "gate_refused", "rules") as check:
        error = check(http.post(PROMOTE, json=body))
    assert [(rule["rule"], rule["passed"]) for rule in error["rules"]] == [
        ("min_score", False),
        ("beats:current", False),
        ("beats:base", True),
        ("max_latency_ratio", True),
        ("max_regression", True),
    ]
    assert error["rules"][1]["actual"] == pytest.approx(-0.05)
    for rule in error["rules"]:
        assert (rule["sentence"] in error["message"]) == (not rule["passed"])
    alias = http.get(ADDRESS).json()
    assert (alias["model"], alias["version"]) == (models[0], 1)
    assert len(http.get(f"{ADDRESS}/history").json()["data"]) == 1

    dry = http.post(PROMOTE, json=body | {"dry_run": True})
    assert (dry.status_code, dry.json()["passed"], dry.json()["promoted"]) == (200, False, False)
    assert (dry.json()["rules"], dry.json()["version"]) == (error["rules"], 1)


def test_promoted_rolled_back_and_promoted_again(
    http: httpx2.Client, models: list[str], comparison: str
) -> None:
    put(http, model=models[0])
    body = {"model": models[1], "comparison": comparison, "rules": RULES}
    headers = {"idempotency-key": "once"}
    first = http.post(PROMOTE, json=body | {"version": 1}, headers=headers).json()
    assert http.post(PROMOTE, json=body | {"version": 1}, headers=headers).json() == first
    assert http.post(f"{ADDRESS}/rollback", json={"version": 2}).json()["model"] == models[0]
    assert http.post(PROMOTE, json=body | {"version": 3}).json()["version"] == 4
    # It points there already: there is no other to beat.
    again = http.post(PROMOTE, json=body | {"version": 4, "rules": {"beats": ["current"]}})
    assert again.json()["rules"][0]["passed"]


def test_the_current_models_of_a_canary(http: httpx2.Client, models: list[str], comparison: str) -> None:
    put(http, split=[{"model": models[0], "weight": 95}, {"model": models[1], "weight": 5}])
    body = {"model": models[1], "comparison": comparison, "rules": {"beats": ["current"]}, "version": 1}
    refusal = http.post(PROMOTE, json=body).json()["error"]
    assert (refusal["code"], refusal["rules"][0]["actual"]) == ("gate_refused", pytest.approx(-0.05))
    body["rules"] = {"beats": ["base"]}
    assert http.post(PROMOTE, json=body).json()["split"] == [{"model": models[1], "weight": 1.0}]


def test_of_many_promotions_one_wins(
    service: Service, http: httpx2.Client, models: list[str], comparison: str
) -> None:
    for version in (None, 1, 2):
        body = {"model": models[1], "comparison": comparison, "rules": RULES} | (
            {} if version is None else {"version": version}
        )
        answers = race(service, *[lambda http, body=body: http.post(PROMOTE, json=body)] * 5)
        assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 4}
        codes = {answer.json()["error"]["code"] for answer in answers if answer.status_code == 409}
        assert codes == {"alias_version_conflict"}
        assert http.get(ADDRESS).json()["version"] == (version or 0) + 1


def test_what_cannot_be_decided_is_refused(
    service: Service, http: httpx2.Client, database: Database, models: list[str], comparison: str
) -> None:
    found = results([candidate("new", model=models[1])], [])
    running = add_comparison(database, found, status="running", results=None)
    foreign = add_comparison(database, found, project="other")
    body: dict[str, Any] = {"model": models[1], "comparison": comparison, "rules": {"min_score": 0}}
    too_much = {"candidate": "base", "delta": 1}
    bare = add_model(database, "never-compared")

    def ask(**changes: Any) -> httpx2.Response:
        return http.post(PROMOTE, json=body | changes)

    for changes, status, code, param in (
        ({"comparison": running}, 409, "comparison_running", "comparison"),
        ({"comparison": foreign}, 404, "comparison_not_found", "comparison"),
        ({"comparison": "cmp_none"}, 404, "comparison_not_found", "comparison"),
        ({"model": bare}, 400, "model_not_compared", "model"),
        ({"model": "ft:none"}, 404, "model_not_found", "model"),
        ({"version": 1}, 409, "alias_version_conflict", "version"),
        ({"rules": {}}, 400, "missing_required_parameter", "rules"),
        ({"rules": {"beats": ["someone"]}}, 400, "invalid_value", "rules.beats[0]"),
        ({"rules": {"beats": [too_much]}}, 400, "invalid_value", "rules.beats[0].delta"),
        ({"rules": {"min_score": 1.1}}, 400, "invalid_value", "rules.min_score"),
        ({"rules": {"min_score": "0.5"}}, 400, "invalid_value", "rules.min_score"),
        ({"rules": {"max_latency_ratio": 0}}, 400, "invalid_value", "rules.max_latency_ratio"),
        ({"rules": {"judge": "me"}}, 400, "unknown_parameter", "rules.judge"),
    ):
        response = ask(**changes)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (status, param), response.text
        assert error["code"] == code, response.text
    with database.writer() as session:
        adapters_service.quarantine(session, models[1], "NaN")
    assert ask().json()["error"]["code"] == "model_quarantined"
    with refused(400, "alias_shadows_model", "name") as check:
        check(http.post("/v1/aliases/ft:x/promote", json=body | {"model": models[0]}))
        check(http.post(f"/v1/aliases/{BASE_MODEL}/promote", json=body | {"model": models[0]}))
    put(http, "an-alias", model=models[0])
    assert ask(model="an-alias").json()["error"]["code"] == "alias_of_alias"
    assert http.get(ADDRESS).status_code == 404
    with service.http(OTHER_KEY) as other:
        assert other.post(PROMOTE, json=body).json()["error"]["code"] == "model_not_found"


def test_the_base_may_be_promoted_too(http: httpx2.Client, comparison: str) -> None:
    body = {"model": "gpt-4o-mini", "comparison": comparison, "rules": {"min_score": 0.1}}
    assert http.post(PROMOTE, json=body).json()["model"] == BASE_MODEL
