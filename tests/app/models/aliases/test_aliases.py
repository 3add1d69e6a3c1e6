"""Aliases over HTTP: what they point to, who moved them, how they go back, and what is refused."""

from __future__ import annotations

import time
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from app.auth.models import ApiKey
from app.core.database import Database
from tests.support.aliases import ADDRESS, NAME, add_model, put, refused
from tests.support.comparison_results import add_comparison, candidate, results
from tests.support.service import BASE_MODEL, OTHER_KEY, Service


@pytest.fixture
def models(database: Database) -> list[str]:
    """Three fine-tuned models of the first project."""
    return [add_model(database, suffix) for suffix in ("a", "b", "c")]


def test_an_alias_from_first_to_last(http: httpx2.Client, database: Database, models: list[str]) -> None:
    before = int(time.time())
    comparison = add_comparison(database, results([candidate("base", "base")], []))
    created = put(http, model=models[0], reason="the first", comparison=comparison)
    assert created["model"] == models[0]
    assert created["split"] == [{"model": models[0], "weight": 1.0}]
    assert (created["object"], created["id"], created["name"], created["version"]) == ("alias", NAME, NAME, 1)
    assert before <= created["created_at"] <= created["updated_at"] <= time.time()
    assert http.get(ADDRESS).json() == created

    moved = put(http, model=models[1], version=1)
    assert (moved["model"], moved["version"], moved["created_at"]) == (models[1], 2, created["created_at"])
    base = put(http, model="gpt-4o-mini", version=2)
    assert base["model"] == BASE_MODEL, "a model's own name is kept, whatever it was called"

    listed = http.get("/v1/aliases").json()
    assert (listed["data"], listed["has_more"]) == ([base], False)
    assert http.delete(ADDRESS).json() == {"id": NAME, "object": "alias", "deleted": True}
    assert http.get("/v1/aliases").json()["data"] == []
    with refused(404, "alias_not_found", "name") as check:
        check(http.get(ADDRESS))
        check(http.delete(ADDRESS))
        check(http.post(f"{ADDRESS}/rollback"))
        check(http.get("/v1/aliases/never-there/history"))

    again = put(http, model=models[2])
    assert again["version"] == 5, "a version is never used twice"
    history = http.get(f"{ADDRESS}/history").json()["data"]
    assert [(change["version"], change["kind"]) for change in history] == [
        (5, "created"),
        (4, "deleted"),
        (3, "set"),
        (2, "set"),
        (1, "created"),
    ]
    with database.reader() as session:
        key = session.query(ApiKey).filter_by(name="TOQUE_API_KEY").one()
    assert all(change["by"] == {"id": key.id, "name": "TOQUE_API_KEY"} for change in history)
    splits = [[{"model": model, "weight": 1.0}] for model in (*models, BASE_MODEL)]
    assert [(change["from"], change["to"]) for change in reversed(history)] == [
        (None, splits[0]),
        (splits[0], splits[1]),
        (splits[1], splits[3]),
        (splits[3], None),
        (None, splits[2]),
    ]
    assert (history[4]["reason"], history[4]["comparison"]) == ("the first", comparison)
    assert all(before <= change["created_at"] <= time.time() for change in history)


def test_lists_page(http: httpx2.Client, models: list[str]) -> None:
    names = [f"alias-{number}" for number in range(5)]
    for name in names:
        put(http, name, model=models[0])
    first = http.get("/v1/aliases", params={"limit": 2}).json()
    rest = http.get("/v1/aliases", params={"limit": 9, "after": first["last_id"]}).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert sorted(alias["name"] for alias in first["data"] + rest["data"]) == names
    with refused(400, "invalid_value", "after") as check:
        check(http.get("/v1/aliases", params={"after": "none"}))

    for version in range(1, 4):
        put(http, names[0], model=models[version % 2], version=version)
    first = http.get(f"/v1/aliases/{names[0]}/history", params={"limit": 3}).json()
    last = http.get(f"/v1/aliases/{names[0]}/history", params={"after": first["last_id"]}).json()
    assert [change["version"] for change in first["data"] + last["data"]] == [4, 3, 2, 1]


def test_going_back_step_by_step(http: httpx2.Client, models: list[str]) -> None:
    a, b, c = models
    put(http, model=a)
    put(http, model=b, version=1)
    put(http, model=b, version=2)
    put(http, model=c, version=3)

    def back(**body: Any) -> dict[str, Any]:
        response = http.post(f"{ADDRESS}/rollback", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    assert (back(version=4, reason="burnt")["model"], back()["model"]) == (b, a)
    with refused(409, "nothing_to_roll_back", "name") as check:
        check(http.post(f"{ADDRESS}/rollback"))
    newest = http.get(f"{ADDRESS}/history").json()["data"]
    assert [(change["kind"], change["restored_version"], change["reason"]) for change in newest[:2]] == [
        ("rolled_back", 1, None),
        ("rolled_back", 3, "burnt"),
    ]
    # What was rolled back from stays behind.
    put(http, model=c, version=6)
    assert (back()["model"], http.post(f"{ADDRESS}/rollback").status_code) == (a, 409)
    # Nor does a new alias go back to what an old one of its name was.
    http.delete(ADDRESS)
    put(http, model=b)
    assert http.post(f"{ADDRESS}/rollback").status_code == 409


def test_a_split_goes_back_as_a_split(http: httpx2.Client, models: list[str]) -> None:
    split = [{"model": models[0], "weight": 95.0}, {"model": models[1], "weight": 5.0}]
    assert put(http, split=split)["split"] == split
    assert put(http, split=[{"model": models[1], "weight": 7}], version=1)["model"] == models[1]
    back = http.post(f"{ADDRESS}/rollback").json()
    assert (back["split"], back["model"], back["version"]) == (split, None, 3)


def test_a_version_that_has_passed_is_409(http: httpx2.Client, models: list[str]) -> None:
    with refused(409, "alias_version_conflict", "version") as check:
        check(http.put(ADDRESS, json={"model": models[0], "version": 1}))
        put(http, model=models[0])
        assert "version 1" in check(http.put(ADDRESS, json={"model": models[1]}))["message"]
        check(http.put(ADDRESS, json={"model": models[1], "version": 2}))
        put(http, model=models[1], version=1)
        check(http.put(ADDRESS, json={"model": models[2], "version": 1}))
        check(http.post(f"{ADDRESS}/rollback", json={"version": 1}))
        check(http.delete(ADDRESS, params={"version": 1}))
        http.delete(ADDRESS, params={"version": 2}).raise_for_status()
        check(http.put(ADDRESS, json={"model": models[2], "version": 3}))
    assert len(http.get(f"{ADDRESS}/history").json()["data"]) == 3


def test_what_is_sent_again_changes_nothing_more(service: Service, models: list[str]) -> None:
    with service.http() as http:
        headers = {"idempotency-key": "a"}
        body = {"model": models[0]}
        answers = [http.put(ADDRESS, json=body, headers=headers) for _ in range(2)]
        assert [answer.json()["version"] for answer in answers] == [1, 1]
        put(http, model=models[1], version=1)
        put(http, model=models[2], version=2)
        headers = {"idempotency-key": "b"}
        answers = [http.post(f"{ADDRESS}/rollback", headers=headers) for _ in range(2)]
        assert [answer.json()["model"] for answer in answers] == [models[1], models[1]]
        # As OpenAI's client does when a connection drops.
        body = {"model": models[2], "version": 4}
        retried = [
            http.put(ADDRESS, json=body, headers={"x-stainless-retry-count": str(count)}) for count in (0, 1)
        ]
        assert [answer.json()["version"] for answer in retried] == [5, 5]


def test_names(http: httpx2.Client, models: list[str]) -> None:
    body = {"model": models[0]}
    hostile = ["Upper", "-a", ":a", ".hidden", "a b", "a%00b", "ä", "a" * 129, "%F0%9F%8D%B2", "a%0A", "a'--"]
    for name in hostile:
        response = http.put(f"/v1/aliases/{name}", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "name"), response.text
    with refused(404, "unknown_url", None) as check:
        check(http.put("/v1/aliases/a%2Fb", json=body))
    with refused(400, "alias_shadows_model", "name") as check:
        for name in (BASE_MODEL, "gpt-4o-mini", "ft:x", *models):
            check(http.put(f"/v1/aliases/{name}", json=body))
    assert http.get("/v1/aliases").json()["data"] == []
    for name in ("a", "0", "a:b._-c", "x" * 128, "null", "true", "1e5", "history"):
        assert put(http, name, **body)["name"] == name
        assert http.get(f"/v1/aliases/{name}").json()["name"] == name
        assert http.delete(f"/v1/aliases/{name}").status_code == 200


def test_targets_that_are_none(http: httpx2.Client, database: Database, models: list[str]) -> None:
    put(http, "other-alias", model=models[0])
    foreign = add_model(database, "theirs", project="other")
    deleted = add_model(database, "deleted", deleted_at=1.0)
    bad = add_model(database, "bad", quarantine_reason="NaN in its weights")

    def split(second: str) -> list[dict[str, Any]]:
        return [{"model": models[0], "weight": 1}, {"model": second, "weight": 1}]

    for target, status, code in (
        ("other-alias", 400, "alias_of_alias"),
        (foreign, 404, "model_not_found"),
        (deleted, 404, "model_not_found"),
        (NAME, 404, "model_not_found"),
        ("no\udc80such".encode("utf-8", "replace").decode(), 404, "model_not_found"),
        (bad, 424, "model_quarantined"),
    ):
        with refused(status, code, "model") as check:
            check(http.put(ADDRESS, json={"model": target}))
        with refused(status, code, "split[1].model") as check:
            check(http.put(ADDRESS, json={"split": split(target)}))
    put(http, model=models[0])
    with refused(400, "alias_of_alias", "model") as check:
        check(http.put(ADDRESS, json={"model": NAME, "version": 1}))
    with refused(400, "invalid_value", "split[1].model") as check:
        check(http.put(ADDRESS, json={"split": split(models[0]), "version": 1}))
    assert http.get(ADDRESS).json()["version"] == 1


def test_only_a_comparison_of_the_project_is_kept(
    http: httpx2.Client, database: Database, models: list[str]
) -> None:
    found = results([candidate("base", "base")], [])
    foreign = add_comparison(database, found, project="other")
    for comparison in (foreign, "cmp_none"):
        with refused(404, "comparison_not_found", "comparison") as check:
            check(http.put(ADDRESS, json={"model": models[0], "comparison": comparison}))
    assert http.get(ADDRESS).status_code == 404, "nothing is created"


BODIES: list[tuple[dict[str, Any], str]] = [
    ({}, "model"),
    ({"model": "a", "split": [{"model": "a", "weight": 1}]}, "model"),
    ({"model": ""}, "model"),
    ({"model": "x" * 256}, "model"),
    ({"model": 5}, "model"),
    ({"split": []}, "split"),
    ({"split": [{"model": "a", "weight": 0}]}, "split[0].weight"),
    ({"split": [{"model": "a", "weight": -1}]}, "split[0].weight"),
    ({"split": [{"model": "a", "weight": "1"}]}, "split[0].weight"),
    ({"split": [{"model": "a", "weight": 1e9}]}, "split[0].weight"),
    ({"split": [{"model": "a"}]}, "split[0].weight"),
    ({"split": [{"model": "a", "weight": 1}] * 17}, "split"),
    ({"model": "a", "version": 0}, "version"),
    ({"model": "a", "version": "1"}, "version"),
    ({"model": "a", "version": 2**31}, "version"),
    ({"model": "a", "reason": "x" * 513}, "reason"),
    ({"model": "a", "reason": "\u0000"}, "reason"),
    ({"model": "a", "comparison": "../x"}, "comparison"),
    ({"model": "a", "unknown": 1}, "unknown"),
]


def test_bodies_that_are_refused(http: httpx2.Client, models: list[str]) -> None:
    for body, param in BODIES:
        response = http.put(ADDRESS, json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    content = b'{"model": "%s", "reason": "\\ud800"}' % models[0].encode()
    response = http.put(ADDRESS, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text


def test_projects_do_not_see_each_other(service: Service, database: Database, models: list[str]) -> None:
    theirs = add_model(database, "theirs", project="other")
    with service.http() as http, service.http(OTHER_KEY) as other, service.http(None) as nobody:
        put(http, model=models[0])
        for answer in (other.get(ADDRESS), other.get(f"{ADDRESS}/history"), other.delete(ADDRESS)):
            assert answer.json()["error"]["code"] == "alias_not_found"
        assert put(other, model=theirs)["version"] == 1, "a name is a project's own"
        assert (http.get(ADDRESS).json()["model"], other.get(ADDRESS).json()["model"]) == (models[0], theirs)
        assert nobody.put(ADDRESS, json={"model": models[0]}).status_code == 401


def test_a_model_that_an_alias_points_to_stays(
    http: httpx2.Client, client: OpenAI, models: list[str]
) -> None:
    put(http, split=[{"model": models[0], "weight": 1}, {"model": models[1], "weight": 1}])
    with pytest.raises(openai.ConflictError) as caught:
        client.models.delete(models[1])
    assert (caught.value.code, caught.value.param) == ("model_in_use", "model")
    assert NAME in str(caught.value)
    put(http, model=models[0], version=1)
    assert client.models.delete(models[1]).deleted
    with refused(404, "model_not_found", "name") as check:
        check(http.post(f"{ADDRESS}/rollback"))
    put(http, model=BASE_MODEL, version=2)
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete(BASE_MODEL)
    http.delete(ADDRESS)
    assert client.models.delete(models[0]).deleted
