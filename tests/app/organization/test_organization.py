"""OpenAI's administration API with its official client: projects, service accounts, keys and usage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.resources.admin.organization import Organization

from app.core.database import Database
from app.usage import folding
from app.usage.models import Sums
from tests.support.cache_clock import CHANGES, CacheClock
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.service import API_KEY, OTHER_KEY, Service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database


def administrator(service: Service, key: str) -> OpenAI:
    return OpenAI(base_url=f"{service.url}/v1", admin_api_key=key, api_key="none", max_retries=0)


@pytest.fixture
def admin(service: Service) -> Iterator[Organization]:
    """The client as an administrator uses it."""
    with administrator(service, API_KEY) as client:
        yield client.admin.organization


def is_refused(client: OpenAI, says: str = "") -> bool:
    try:
        client.models.list()
    except openai.AuthenticationError as error:
        return says in error.message
    return False


def test_a_project_from_first_to_last(admin: Organization, service: Service, cache_clock: CacheClock) -> None:
    project = admin.projects.create(name="Kundendienst Köln")
    assert (project.name, project.status, project.archived_at) == ("Kundendienst Köln", "active", None)
    assert project.to_dict()["slug"] == "kundendienst-koln"
    namesake = admin.projects.create(name="kundendienst köln!")
    assert namesake.to_dict()["slug"] == "kundendienst-koln-2"
    renamed = admin.projects.update(project.id, name="Support")
    assert (renamed.name, renamed.to_dict()["slug"]) == ("Support", "kundendienst-koln")
    assert admin.projects.retrieve(project.id) == renamed
    listed = [each.name for each in admin.projects.list(limit=1)]  # page by page
    assert listed == ["kundendienst köln!", "Support", "other", "default"]

    made = admin.projects.service_accounts.create(project.id, name="web")
    assert made.api_key is not None
    with service.client(made.api_key.value) as client:
        assert client.models.list().data
        archived = admin.projects.archive(project.id)
        assert archived.status == "archived"
        assert admin.projects.archive(project.id) == archived
        cache_clock.pass_time(CHANGES)
        assert is_refused(client, "archived")
    assert project.id not in [each.id for each in admin.projects.list()]
    assert project.id in [each.id for each in admin.projects.list(include_archived=True)]
    for change in (
        lambda: admin.projects.update(project.id, name="x"),
        lambda: admin.projects.service_accounts.create(project.id, name="x"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            change()
        assert (refused.value.code, refused.value.param) == ("project_archived", "project_id")


def test_the_first_project_stays(admin: Organization) -> None:
    [default] = [each for each in admin.projects.list() if each.name == "default"]
    with pytest.raises(openai.BadRequestError) as refused:
        admin.projects.archive(default.id)
    assert refused.value.code == "default_project"


def test_keys_from_first_to_last(
    admin: Organization, service: Service, engine: EngineStandIn, cache_clock: CacheClock
) -> None:
    project = admin.projects.create(name="Support").id
    limits = {"role": "inference", "models": [ASK["model"]]}
    account = admin.projects.service_accounts.create(
        project, name="web", expires_in_seconds=3600, extra_body=limits
    )
    old = account.api_key
    assert old is not None
    assert old.expires_at == pytest.approx(time.time() + 3600, abs=60)
    assert limits.items() <= old.to_dict().items()
    with service.client(old.value) as client, administrator(service, old.value) as intruder:
        assert client.chat.completions.create(**ASK).choices[0].message.content == "Leek."
        with pytest.raises(openai.PermissionDeniedError):
            client.files.list()
        with pytest.raises(openai.PermissionDeniedError) as refused:
            intruder.admin.organization.projects.list()
        assert "'admin'" in refused.value.message

    new = admin.projects.service_accounts.api_keys.create(account.id, project_id=project, extra_body=limits)
    assert new.name == "web"
    keys = admin.projects.api_keys
    assert {key.id for key in keys.list(project, limit=1)} == {old.id, new.id}
    shown = keys.retrieve(old.id, project_id=project)
    assert shown.redacted_value == f"sk-...{old.value[-4:]}"
    assert old.value not in shown.to_json()
    assert shown.owner.service_account is not None
    assert (shown.owner.type, shown.owner.service_account.id) == ("service_account", account.id)
    assert (shown.owner_project_access, shown.last_used_at) == ("active", None)

    ending = keys.update(old.id, project_id=project, expires_in_seconds=1)
    assert ending.expires_at == pytest.approx(time.time() + 1, abs=30)
    with service.client(old.value) as last, service.client(new.value) as client:
        cache_clock.pass_time(CHANGES)
        wait_until(lambda: is_refused(last, "expired"), "the old key expires")
        assert client.models.list().data
        with pytest.raises(openai.BadRequestError) as ended:
            keys.update(old.id, project_id=project, expires_in_seconds=1000)
        assert ended.value.code == "api_key_expired"
        assert keys.delete(new.id, project_id=project).deleted
        cache_clock.pass_time(CHANGES)
        assert is_refused(client)
    with pytest.raises(openai.NotFoundError):
        keys.retrieve(new.id, project_id=project)

    assert [each.id for each in admin.projects.service_accounts.list(project)] == [account.id]
    assert admin.projects.service_accounts.retrieve(account.id, project_id=project).name == "web"
    assert admin.projects.service_accounts.delete(account.id, project_id=project).deleted
    assert keys.list(project).data == admin.projects.service_accounts.list(project).data == []


def test_what_belongs_to_another_project_is_not_found(admin: Organization) -> None:
    project, other = (admin.projects.create(name=name).id for name in "ab")
    made = admin.projects.service_accounts.create(project, name="web")
    assert made.api_key is not None
    key = made.api_key.id
    for ask, code in (
        (lambda: admin.projects.retrieve("proj_none"), "project_not_found"),
        (lambda: admin.projects.api_keys.list("proj_none"), "project_not_found"),
        (lambda: admin.projects.api_keys.retrieve(key, project_id=other), "api_key_not_found"),
        (lambda: admin.projects.api_keys.delete(key, project_id=other), "api_key_not_found"),
        (
            lambda: admin.projects.service_accounts.delete(made.id, project_id=other),
            "service_account_not_found",
        ),
    ):
        with pytest.raises(openai.NotFoundError) as missing:
            ask()
        assert missing.value.code == code


def test_what_a_key_cannot_be(admin: Organization, service: Service) -> None:
    project = admin.projects.list().data[0].id
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"name": ""}, "invalid_value", "name"),
        ({"name": "x" * 129}, "invalid_value", "name"),
        ({"name": "a\u0000"}, "invalid_value", "name"),
        ({"role": "chef"}, "invalid_value", "role"),
        ({"role": "train", "models": ["m"]}, "invalid_value", "models"),
        ({"role": "inference", "models": []}, "invalid_value", "models"),
        ({"role": "inference", "models": ["m"] * 101}, "invalid_value", "models"),
        ({"expires_in_seconds": 0}, "invalid_value", "expires_in_seconds"),
        ({"expires_in_seconds": 2**70}, "invalid_value", "expires_in_seconds"),
        ({"scopes": ["api.all.read"]}, "unknown_parameter", "scopes"),
    ]
    with service.http() as http:
        for body, code, param in wrong:
            path = f"/v1/organization/projects/{project}/service_accounts"
            refused = http.post(path, json={"name": "x"} | body)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["param"]) == (400, code, param), error
    assert [key.name for key in admin.projects.api_keys.list(project)] == ["other's key"]


def test_a_retry_creates_no_second_project(service: Service) -> None:
    with service.http() as http:
        headers = {"idempotency-key": "k"}
        first, again = (
            http.post("/v1/organization/projects", json={"name": "Support"}, headers=headers).json()
            for _ in range(2)
        )
    assert first == again


def test_the_usage_of_all_projects(admin: Organization, database: Database) -> None:
    other, default = (each.id for each in admin.projects.list())
    minute = int(time.time()) // 60 * 60
    counted = {
        (default, minute, "a"): Sums(1, 2, 3),
        (default, minute, "b"): Sums(10, 20, 30),
        (other, minute, "a"): Sums(100, 200, 300),
    }
    with database.writer() as session:
        folding.add_usage(session, counted)

    def results(**query: Any) -> set[tuple[Any, ...]]:
        page = admin.usage.completions(start_time=minute, bucket_width="1d", **query).to_dict()
        names = ("project_id", "model", "num_model_requests", "input_tokens", "output_tokens")
        buckets: Any = page["data"]
        return {tuple(each[name] for name in names) for bucket in buckets for each in bucket["results"]}

    assert results() == {(None, None, 111, 222, 333)}
    assert results(group_by=["project_id"]) == {(default, None, 11, 22, 33), (other, None, 100, 200, 300)}
    assert results(group_by=["model"]) == {(None, "a", 101, 202, 303), (None, "b", 10, 20, 30)}
    assert len(results(group_by=["model", "project_id"])) == 3
    assert results(project_ids=[other]) == {(None, None, 100, 200, 300)}
    assert results(project_ids=["proj_none"]) == set()
    for unknown in ({"user_ids": ["u"]}, {"batch": True}):
        with pytest.raises(openai.BadRequestError) as refused:
            results(**unknown)
        assert refused.value.code == "unsupported_parameter"


def test_only_an_administrator_sees_them(service: Service) -> None:
    with service.http(OTHER_KEY) as http:
        for path in ("projects", "usage/completions?start_time=0"):
            refused = http.get(f"/v1/organization/{path}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")
