"""Whatever goes wrong, the answer is OpenAI's envelope, and says what to do."""

from __future__ import annotations

import httpx2
import openai
import pytest

from tests.support.service import OTHER_KEY, Service

pytestmark = pytest.mark.one_database


def assert_envelope(
    response: httpx2.Response, status: int, code: str | None, param: str | None = None
) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error
    assert error["message"]
    assert response.headers["x-request-id"]
    return error["message"]


def test_unknown_routes_and_methods(http: httpx2.Client) -> None:
    assert_envelope(http.get("/v1/nothing"), 404, "unknown_url")
    refused = http.delete("/v1/files")
    assert_envelope(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "GET, POST"


@pytest.mark.parametrize("key", [None, "sk-wrong", "\u00e9"])
def test_no_key_or_a_wrong_one(service: Service, key: str | None) -> None:
    with service.http(None) as http:
        headers = {} if key is None else {"authorization": f"Bearer {key}".encode("latin-1")}
        assert_envelope(http.get("/v1/files", headers=headers), 401, "invalid_api_key")


def test_the_official_client_sees_its_own_exceptions(service: Service) -> None:
    with service.client("sk-wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id is not None
    assert caught.value.request_id.startswith("req_")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"", "missing_required_parameter", None),
        (b"[]", "invalid_value", None),
        (b"{}", "missing_required_parameter", "model"),
        (b'{"model": 1, "training_file": "file-x"}', "invalid_value", "model"),
        (b'{"model": "m", "training_file": "f", "n_epoch": 3}', "unknown_parameter", "n_epoch"),
        (b'{"model": "m", "training_file": "f", "seed": -1}', "invalid_value", "seed"),
        (b'{"model": "m", "training_file": "f", "suffix": "../up"}', "invalid_value", "suffix"),
        (b'{"model": "m", "training_file": "f", "lora_rank": 1.5}', "invalid_value", "lora_rank"),
        (b"\xff\xfe{}", "invalid_json", None),
        (b'{"model": ' + b"[" * 5000, "invalid_json", None),
    ],
)
def test_bodies_that_are_wrong(http: httpx2.Client, body: bytes, code: str, param: str | None) -> None:
    headers = {"content-type": "application/json"}
    response = http.post("/v1/fine_tuning/jobs", content=body, headers=headers)
    assert_envelope(response, 400, code, param)


def test_half_a_surrogate_pair(http: httpx2.Client) -> None:
    model = b'{"model": "\\ud800", "training_file": "f"}'
    file = b'{"model": "smollm2-135m-instruct", "training_file": "\\ud800"}'
    headers = {"content-type": "application/json"}
    for content in (model, file):
        response = http.post("/v1/fine_tuning/jobs", content=content, headers=headers)
        assert_envelope(response, 400, "invalid_value")


def test_a_content_type_that_is_not_json(http: httpx2.Client) -> None:
    headers = {"content-type": "text/plain"}
    response = http.post("/v1/fine_tuning/jobs", content=b'{"model": "m"}', headers=headers)
    assert response.status_code in (400, 415)
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_over_the_limit(http: httpx2.Client) -> None:
    too_long = b'{"model": "' + b"x" * (17 * 2**20) + b'"}'
    response = http.post(
        "/v1/fine_tuning/jobs", content=too_long, headers={"content-type": "application/json"}
    )
    assert_envelope(response, 413, "body_too_large")

    def chunks():
        yield from (b"x" * 2**20 for _ in range(18))

    response = http.post(
        "/v1/fine_tuning/jobs", content=chunks(), headers={"content-type": "application/json"}
    )
    assert_envelope(response, 413, "body_too_large")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/file-none",
        "/v1/files/file-none/content",
        "/v1/files/%00",
        "/v1/files/..%2f..%2fetc%2fpasswd",
        "/v1/fine_tuning/jobs/ftjob-none",
        "/v1/fine_tuning/jobs/ftjob-none/events",
        "/v1/fine_tuning/jobs/ftjob-none/checkpoints",
        "/v1/models/none",
        "/v1/models/ft:none",
        "/v1/models/%F0%9F%8D%B2",
    ],
)
def test_ids_that_do_not_exist(http: httpx2.Client, path: str) -> None:
    response = http.get(path)
    assert response.status_code in (400, 404), response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "after=nothing", "after=%00", "limit=99999999999999999999"]
)
@pytest.mark.parametrize("path", ["/v1/files", "/v1/fine_tuning/jobs"])
def test_pages_that_do_not_exist(http: httpx2.Client, path: str, query: str) -> None:
    response = http.get(f"{path}?{query}")
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_every_response_carries_an_id_and_its_time(http: httpx2.Client) -> None:
    response = http.get("/v1/models")
    assert response.headers["x-request-id"].startswith("req_")
    assert int(response.headers["openai-processing-ms"]) >= 0
    assert http.get("/v1/models", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"


def test_keys_end_when_they_are_revoked(service: Service, database) -> None:
    from app.auth import service as auth_service

    with database.writer() as session:
        revoked = [key.id for key, project in auth_service.list_keys(session) if project.name == "other"]
        for key_id in revoked:
            auth_service.revoke_key(session, key_id)
    with service.http(OTHER_KEY) as http:
        assert_envelope(http.get("/v1/models"), 401, "invalid_api_key")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/fine_tuning/alpha/graders/run"])
def test_a_401_has_the_challenge_of_rfc_6750(service: Service, path: str) -> None:
    method = "GET" if path == "/v1/models" else "POST"
    with service.http(None) as http:
        missing = http.request(method, path)
        wrong = http.request(method, path, headers={"authorization": "Bearer sk-wrong"})
    assert missing.headers["www-authenticate"] == 'Bearer realm="toque"'
    assert wrong.headers["www-authenticate"] == 'Bearer realm="toque", error="invalid_token"'
