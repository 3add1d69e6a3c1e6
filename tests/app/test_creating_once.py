"""A request that is sent again creates nothing again, on both databases."""

from __future__ import annotations

import threading
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.conftest import BASE_MODEL, OTHER_KEY, Service, training_bytes


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
