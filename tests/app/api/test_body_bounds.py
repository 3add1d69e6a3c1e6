"""Bodies that would take long to parse are refused while they are read: on every route that takes JSON."""

from __future__ import annotations

import json
import re
import time

import httpx2
import pytest

from tests.app.api.test_params import operations, schema_of

pytestmark = pytest.mark.one_database

HOSTILE = {
    "a list": b'{"a": [' + b"{}," * 300_000 + b"{}]}",
    "a list of the job's": b'{"model": "m", "training_file": "f", "integrations": ['
    + b"{}," * 200_000
    + b"{}]}",
    "fields": json.dumps({f"f{number}": 1 for number in range(100_000)}).encode(),
    "depth": b'{"metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_a_body_with_very_many_values(http: httpx2.Client, body: bytes) -> None:
    routes = [(method, path) for method, path, each in operations() if schema_of(each, "application/json")]
    assert ("POST", "/v1/fine_tuning/jobs") in routes
    for method, path in routes:
        url = re.sub(r"\{[^}]+\}", "none", path)
        started = time.process_time()
        response = http.request(method, url, content=body, headers={"content-type": "application/json"})
        assert time.process_time() - started < 1.5, path
        error = response.json()["error"]
        assert response.status_code in (400, 404), response.text
        assert error["type"] == "invalid_request_error"


def test_what_follows_a_refusal_is_not_read(http: httpx2.Client) -> None:
    body = {"content": HOSTILE["a list"] * 10, "headers": {"content-type": "application/json"}}
    for path in ("/v1/fine_tuning/jobs", "/v1/chat/completions", "/v1/completions"):
        refused = http.post(path, **body)
        assert refused.json()["error"]["message"].startswith("The body has more than")
        assert refused.headers["connection"] == "close"


def test_as_much_as_a_route_takes(http: httpx2.Client) -> None:
    part_ids = [f"part_{number:024}" for number in range(10_000)]
    response = http.post("/v1/uploads/upload_none/complete", json={"part_ids": part_ids})
    assert response.json()["error"]["code"] != "invalid_value", response.text


@pytest.mark.parametrize("count", [9, 30_000])
def test_a_list_of_a_job_ends_with_its_first_mistake(http: httpx2.Client, count: int) -> None:
    body = {"model": "m", "training_file": "f", "integrations": [{}] * count}
    started = time.process_time()
    error = http.post("/v1/fine_tuning/jobs", json=body).json()["error"]
    assert time.process_time() - started < 0.5
    assert error["param"] in ("integrations", "integrations[0].type")
