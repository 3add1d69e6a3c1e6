"""The audit log: every change has its line, written with it, and nothing else has one."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import func, select

from app.api.main import create_app
from app.audit.models import AuditLog
from app.audit.recorder import ACTOR, Actor
from app.audit.resources import NOT_WATCHED, RESOURCES
from app.auth import service as auth_service
from app.auth.models import ApiKey, Project
from app.core.database import Base, Database
from tests.support.service import API_KEY, BASE_MODEL, Service

PATH = "/v1/organization/audit_logs"
assert create_app  # whose imports fill the metadata


def logs(http: httpx2.Client, **query: Any) -> list[dict[str, Any]]:
    response = http.get(PATH, params=query)
    assert response.status_code == 200, response.text
    return response.json()["data"]


def test_every_table_is_decided_on() -> None:
    assert RESOURCES.keys().isdisjoint(NOT_WATCHED)
    assert RESOURCES.keys() | NOT_WATCHED == Base.metadata.tables.keys()


def test_a_change_is_logged_with_who_what_and_from_where(http: httpx2.Client, database: Database) -> None:
    for version, model in ((None, BASE_MODEL), (1, "gpt-4o-mini")):
        body = {"model": model} | ({"version": version} if version else {})
        assert http.put("/v1/aliases/soup", json=body).status_code == 200
    assert http.delete("/v1/aliases/soup").status_code == 200
    deleted, updated, created = logs(http)
    with database.reader() as session:
        key = session.scalars(select(ApiKey).join(Project).where(Project.name == "default")).one()
    assert [each["type"] for each in (created, updated, deleted)] == [
        "alias.created",
        "alias.updated",
        "alias.deleted",
    ]
    assert created["alias.created"] == {"id": updated["alias.updated"]["id"]}
    assert created["actor"] == {"type": "api_key", "api_key": {"id": key.id, "type": "service_account"}}
    assert (created["ip_address"], created["project"]["id"]) == ("127.0.0.1", key.project_id)
    assert (created["before"], created["after"]["name"]) == ({}, "soup")
    assert (updated["before"]["version"], updated["after"]["version"]) == (1, 2)
    assert deleted["before"]["deleted_at"] is None
    assert deleted["after"]["split"] == []


def test_an_alias_that_is_created_again_is_logged_as_created(http: httpx2.Client) -> None:
    for _ in range(2):
        assert http.put("/v1/aliases/soup", json={"model": BASE_MODEL}).status_code == 200
        assert http.delete("/v1/aliases/soup").status_code == 200
    types = [each["type"] for each in logs(http)]
    assert types == ["alias.deleted", "alias.created"] * 2


def test_what_was_refused_or_only_read_is_not_logged(http: httpx2.Client) -> None:
    assert http.put("/v1/aliases/soup", json={"model": "none"}).status_code == 404
    assert http.get("/v1/aliases").status_code == 200
    assert http.post("/v1/batches", json={}).status_code == 400
    assert logs(http) == []


def test_a_change_that_is_rolled_back_is_not_logged(database: Database) -> None:
    def change() -> None:
        with database.writer() as session:
            auth_service.create_project(session, "soups")
            _ = 1 / 0

    acting = ACTOR.set(Actor("session", "cook", "kitchen"))
    try:
        with pytest.raises(ZeroDivisionError):
            change()
        with database.writer() as session:
            auth_service.create_project(session, "soups")
    finally:
        ACTOR.reset(acting)
    with database.writer() as session:
        auth_service.create_project(session, "by-itself")
    with database.reader() as session:
        [log] = session.scalars(select(AuditLog))
    assert (log.type, log.actor_id, log.address, log.after["name"]) == (
        "project.created",
        "cook",
        "kitchen",
        "soups",
    )
    assert log.project_id == log.resource_id


def test_secrets_are_in_no_line(http: httpx2.Client, database: Database) -> None:
    asked = {"name": "ours", "url": "https://example.com/T0/secret?k=1", "event_types": ["batch.failed"]}
    endpoint = http.post("/v1/webhook_endpoints", json=asked).json()
    path = f"/v1/webhook_endpoints/{endpoint['id']}/rotate_secret"
    rotated = http.post(path, json={"keep_old_secret_active_for_24_hours": True}).json()
    account = {"name": "web", "role": "inference"}
    project = http.post("/v1/organization/projects", json={"name": "Support"}).json()["id"]
    made = http.post(f"/v1/organization/projects/{project}/service_accounts", json=account)
    assert made.status_code == 200, made.text
    accounts = f"/v1/organization/projects/{project}/service_accounts"
    assert http.delete(f"{accounts}/{made.json()['id']}").status_code == 200
    ended, account_ended, *found = sorted(logs(http, limit=2), key=lambda each: each["type"]) + logs(http)[2:]
    assert (ended["type"], account_ended["type"]) == ("api_key.deleted", "service_account.deleted")
    assert [each["type"] for each in reversed(found)] == [
        "webhook_endpoint.created",
        "webhook_endpoint.updated",
        "project.created",
        "service_account.created",
        "api_key.created",
    ]
    written = json.dumps(found)
    assert "https://example.com/\\u2026" in written
    for secret in (
        "T0/secret",
        endpoint["signing_secret"],
        rotated["signing_secret"],
        made.json()["api_key"]["value"],
        API_KEY,
    ):
        assert secret not in written
    with database.reader() as session:
        digests = session.scalars(select(ApiKey.key_sha256)).all()
    assert not any(digest in written for digest in digests)


def test_it_is_filtered_and_paged(service: Service, http: httpx2.Client) -> None:
    for name in ("a", "b", "c"):
        http.put(f"/v1/aliases/{name}", json={"model": BASE_MODEL})
    http.delete("/v1/aliases/b")
    with OpenAI(
        base_url=f"{service.url}/v1", api_key=API_KEY, admin_api_key=API_KEY, max_retries=0
    ) as client:
        listed = list(client.admin.organization.audit_logs.list(limit=2))
        assert [each.type for each in listed] == ["alias.deleted", *["alias.created"] * 3]
        first = listed[-1]
        filters: list[dict[str, Any]] = [
            {"event_types": ["alias.deleted"]},
            {"resource_ids": [logs(http)[0]["alias.deleted"]["id"]], "event_types": ["alias.deleted"]},
        ]
        for each in filters:
            assert [log.type for log in client.admin.organization.audit_logs.list(**each)] == [
                "alias.deleted"
            ]
        for effective_at, count in (
            ({"gte": first.effective_at}, 4),
            ({"lt": first.effective_at}, 0),
            ({"gt": first.effective_at + 3600}, 0),
            ({"lte": first.effective_at + 3600}, 4),
        ):
            assert len(list(client.admin.organization.audit_logs.list(effective_at=effective_at))) == count  # pyright: ignore
    assert logs(http, **{"actor_ids[]": "key_none"}) == logs(http, **{"project_ids[]": "proj_none"}) == []
    refused = http.get(PATH, params={"limit": 1000})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "limit")


@pytest.mark.one_database
def test_only_administrators_read_it(service: Service, database: Database) -> None:
    with database.writer() as session:
        project = auth_service.create_project(session, "default")
        _, secret = auth_service.create_key(session, project.id, "p", role="project")
    with service.http(secret) as http:
        assert http.get(PATH).status_code == 403


@pytest.mark.one_database
def test_there_is_no_way_to_change_it(http: httpx2.Client, database: Database) -> None:
    http.put("/v1/aliases/a", json={"model": BASE_MODEL})
    [log] = logs(http)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in (PATH, f"{PATH}/{log['id']}"):
            assert http.request(method, path, json={}).status_code in (404, 405)
    with database.reader() as session:
        assert session.scalar(select(func.count()).select_from(AuditLog)) == 1
