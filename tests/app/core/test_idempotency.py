"""A request that is sent again creates nothing again, on both databases."""

from __future__ import annotations

import threading
from typing import Any

import httpx2
import openai
import pytest
from openai import DefaultHttpxClient, OpenAI
from sqlalchemy import text

from app.core.database import Database
from tests.support.service import API_KEY, BASE_MODEL, OTHER_KEY, Service
from tests.support.training_files import training_bytes
from tests.support.waiting import wait_until


@pytest.fixture
def file_id(client: OpenAI) -> str:
    return client.files.create(file=("a.jsonl", training_bytes()), purpose="fine-tune").id


def post(http: httpx2.Client, file_id: str, headers: dict[str, str], **body: Any) -> httpx2.Response:
    content = {"model": BASE_MODEL, "training_file": file_id} | body
    return http.post("/v1/fine_tuning/jobs", json=content, headers=headers)


def jobs(client: OpenAI) -> list[str]:
    return [job.id for job in client.fine_tuning.jobs.list()]


def test_a_key_names_one_creation(client: OpenAI, http: httpx2.Client, file_id: str) -> None:
    first = post(http, file_id, {"idempotency-key": "k1"}).json()
    again = post(http, file_id, {"idempotency-key": "k1"})
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    other = post(http, file_id, {"idempotency-key": "k2"}).json()
    assert sorted(jobs(client)) == sorted([first["id"], other["id"]])
    reused = post(http, file_id, {"idempotency-key": "k1"}, seed=5)
    assert (reused.status_code, reused.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert len(jobs(client)) == 2


def test_a_key_belongs_to_its_project(
    service: Service, client: OpenAI, http: httpx2.Client, file_id: str
) -> None:
    post(http, file_id, {"idempotency-key": "k1"})
    with service.client(OTHER_KEY) as other, service.http(OTHER_KEY) as other_http:
        their_file = other.files.create(file=("a.jsonl", training_bytes()), purpose="fine-tune").id
        assert post(other_http, their_file, {"idempotency-key": "k1"}).status_code == 200
        assert len(jobs(other)) == 1
    assert len(jobs(client)) == 1


def test_the_clients_own_retry_is_known(client: OpenAI, http: httpx2.Client, file_id: str) -> None:
    first = post(http, file_id, {}).json()
    retried = post(http, file_id, {"x-stainless-retry-count": "1"}).json()
    assert retried["id"] == first["id"]
    deliberate = post(http, file_id, {"x-stainless-retry-count": "0"}).json()
    assert deliberate["id"] != first["id"]
    different = post(http, file_id, {"x-stainless-retry-count": "2"}, suffix="x").json()
    assert different["id"] not in (first["id"], deliberate["id"])
    assert len(jobs(client)) == 3


def test_uploads_too(client: OpenAI) -> None:
    def upload(content: bytes, **headers: str) -> str:
        return client.files.create(file=("a.jsonl", content), purpose="fine-tune", extra_headers=headers).id

    first = upload(training_bytes(), **{"Idempotency-Key": "u"})
    assert upload(training_bytes(), **{"Idempotency-Key": "u"}) == first
    with pytest.raises(openai.UnprocessableEntityError):
        upload(training_bytes(11), **{"Idempotency-Key": "u"})
    second = upload(training_bytes())
    assert second != first
    assert upload(training_bytes(), **{"x-stainless-retry-count": "1"}) in (first, second)
    assert len(list(client.files.list())) == 2


def test_racing_requests_with_one_key_create_one(client: OpenAI, service: Service, file_id: str) -> None:
    statuses: list[int] = []

    def send() -> None:
        with service.http() as http:
            statuses.append(post(http, file_id, {"idempotency-key": "race"}).status_code)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 409}
    assert 200 in statuses
    assert len(jobs(client)) == 1


@pytest.mark.parametrize("held_up", ["files", "creations"])
def test_a_try_that_is_slow_rather_than_lost_creates_no_second(
    service: Service, client: OpenAI, database: Database, file_id: str, held_up: str
) -> None:
    """The client hangs up and tries again, while its first try waits: before it was known, or half done."""
    created: list[str] = []
    tries: list[object] = []

    def order() -> None:
        counting = DefaultHttpxClient(event_hooks={"request": [tries.append]})
        url = f"{service.url}/v1"
        with OpenAI(base_url=url, api_key=API_KEY, timeout=2, max_retries=20, http_client=counting) as hasty:
            created.append(hasty.fine_tuning.jobs.create(model=BASE_MODEL, training_file=file_id).id)

    ordering = threading.Thread(target=order)
    with database.writer() as session:
        server = database.engine.dialect.name == "postgresql"
        session.execute(text(f"LOCK TABLE {held_up} IN ACCESS EXCLUSIVE MODE" if server else "SELECT 1"))
        ordering.start()
        wait_until(lambda: len(tries) >= 2, "it tries again")
    ordering.join()
    assert jobs(client) == created


def test_every_route_that_creates_takes_a_key(http: httpx2.Client) -> None:
    creates_nothing = {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",  # what it stores is an answer, which a second request gets anew
        "/v1/responses/{response_id}/cancel",
        "/v1/batches/{batch_id}/cancel",
        "/v1/fine_tuning/alpha/graders/run",
        "/v1/fine_tuning/alpha/graders/validate",
        "/v1/adapters/{name}/check",
        "/v1/comparisons/{comparison_id}/cancel",
        "/v1/uploads/{upload_id}/cancel",
        "/v1/fine_tuning/jobs/{job_id}/cancel",
        "/v1/fine_tuning/jobs/{job_id}/pause",
        "/v1/fine_tuning/jobs/{job_id}/resume",
        "/v1/organization/projects/{project_id}",
        "/v1/organization/projects/{project_id}/archive",
        "/v1/organization/projects/{project_id}/quotas",
        "/v1/organization/projects/{project_id}/retention",
        "/v1/organization/projects/{project_id}/rate_limits/{rate_limit_id}",
        "/v1/organization/projects/{project_id}/api_keys/{api_key_id}/rate_limits/{rate_limit_id}",
        "/v1/organization/projects/{project_id}/api_keys/{api_key_id}",
        # What these create cannot be shown again: docs/keys.md.
        "/v1/organization/projects/{project_id}/service_accounts",
        "/v1/organization/projects/{project_id}/service_accounts/{service_account_id}/api_keys",
        "/v1/webhook_endpoints/{webhook_endpoint_id}",
        "/v1/webhook_endpoints/{webhook_endpoint_id}/test",
    }
    posts = {
        path: item["post"]
        for path, item in http.get("/openapi.json").json()["paths"].items()
        if "post" in item
    }
    takes_key = {
        path
        for path, post in posts.items()
        if "idempotency-key" in [parameter["name"] for parameter in post.get("parameters", [])]
    }
    assert takes_key == posts.keys() - creates_nothing
    assert takes_key == {
        "/v1/adapters",
        "/v1/aliases/{name}/promote",
        "/v1/aliases/{name}/rollback",
        "/v1/batches",
        "/v1/comparisons",
        "/v1/files",
        "/v1/fine_tuning/jobs",
        "/v1/organization/projects",
        "/v1/uploads",
        "/v1/uploads/{upload_id}/complete",
        "/v1/uploads/{upload_id}/parts",
        "/v1/uploads/{upload_id}/parts/signed",
        "/v1/webhook_endpoints",
        "/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret",
        "/v1/webhooks/deliveries/{delivery_id}/replay",
    }


def test_an_upload_after_a_deletion_is_a_new_one(client: OpenAI) -> None:
    def upload() -> str:
        again = {"x-stainless-retry-count": "1"}
        return client.files.create(
            file=("a.jsonl", training_bytes()), purpose="fine-tune", extra_headers=again
        ).id

    first = upload()
    client.files.delete(first)
    second = upload()
    assert [file.id for file in client.files.list()] == [second]
    assert second != first
