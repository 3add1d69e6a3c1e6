"""Every route that OpenAI also has answers in the shape that its specification gives it.

All other tests that ask a service are held to the same shapes (`tests/support/service.py`).
"""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai.types import FileObject

from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning.models import Checkpoint, FineTuningJob
from app.models.adapters.models import Adapter
from tests.specification.shapes import SHAPES, validator
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.service import BASE_MODEL, Service
from tests.support.training_files import training_bytes
from tests.support.webhook_receiver import run_receiver

pytestmark = pytest.mark.one_database

OURS = ("/health", "/metrics", "/v1/adapters", "/v1/aliases", "/v1/comparisons", "/v1/usage", "/v1/webhooks/")
"""Routes of resources that OpenAI does not have."""
WITHOUT_SHAPE = {
    "GET /v1/organization/projects/{project_id}/quotas": "ours",
    "POST /v1/organization/projects/{project_id}/quotas": "ours",
    "GET /v1/organization/projects/{project_id}/retention": "ours",
    "POST /v1/organization/projects/{project_id}/retention": "ours",
    "GET /v1/files/{file_id}/content": "the file's bytes",
    "GET /v1/files/{file_id}/validation": "ours",
    "GET /v1/uploads": "ours",
    "GET /v1/uploads/{upload_id}": "ours",
    "POST /v1/uploads/{upload_id}/parts/signed": "ours",
    "GET /v1/organization/projects/{project_id}/api_keys/{api_key_id}/rate_limits": "ours",
    "POST /v1/organization/projects/{project_id}/api_keys/{api_key_id}/rate_limits/{rate_limit_id}": "ours",
    "DELETE /v1/responses/{response_id}": "the specification has no body",
    "POST /v1/responses/{response_id}/cancel": "it always refuses",
}


def test_every_route_has_a_shape() -> None:
    specification = json.loads((Path(__file__).parents[2] / "openapi" / "openapi.json").read_text("utf-8"))
    routes = {
        f"{method.upper()} {path}"
        for path, methods in specification["paths"].items()
        for method in methods
        if not path.startswith(OURS)
    }
    assert routes == SHAPES.keys() | WITHOUT_SHAPE.keys()


def test_every_route_keeps_its_shape(
    settings: Settings, service: Service, http: httpx2.Client, database: Database, engine: EngineStandIn
) -> None:
    _ask_for_completions(http)
    _ask_for_responses(http)
    file = _ask_for_files(http)
    _ask_for_uploads(http)
    _ask_for_jobs(http, database, file)
    _ask_for_models(http, database)
    _ask_for_graders(http)
    _ask_for_batches(http)
    _ask_for_projects(http)
    _ask_for_webhooks(http, settings)
    _ok(http.get("/v1/organization/audit_logs", params={"limit": 100}))
    assert SHAPES.keys() == service.watch.seen


def _ok(response: httpx2.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {} if "text/event-stream" in response.headers["content-type"] else response.json()


def _ask_for_completions(http: httpx2.Client) -> None:
    for path, body in (
        ("/v1/chat/completions", ASK),
        ("/v1/completions", {"model": BASE_MODEL, "prompt": "Soup"}),
    ):
        _ok(http.post(path, json=body))
        for include_usage in (True, False):
            options = {"stream": True, "stream_options": {"include_usage": include_usage}}
            _ok(http.post(path, json=body | options))
        assert http.post(path, json=body | {"n": 0}).status_code == 400


def _ask_for_responses(http: httpx2.Client) -> None:
    tool = {"type": "function", "name": "stock", "parameters": {"type": "object"}, "strict": False}
    asked: dict[str, Any] = {"model": BASE_MODEL, "input": "Soup?"}
    _ok(http.post("/v1/responses", json=asked | {"tools": [tool], "tool_choice": "none"}))
    _ok(http.post("/v1/responses", json=asked | {"stream": True}))
    first = _ok(http.post("/v1/responses", json=asked | {"instructions": "Be brief."}))["id"]
    second = _ok(http.post("/v1/responses", json=asked | {"previous_response_id": first}))["id"]
    _ok(http.get(f"/v1/responses/{first}"))
    assert len(_ok(http.get(f"/v1/responses/{second}/input_items"))["data"]) == 3


def _ask_for_files(http: httpx2.Client) -> str:
    upload = {"files": {"file": ("train.jsonl", training_bytes())}}
    kept = _ok(http.post("/v1/files", data={"purpose": "fine-tune"}, **upload))["id"]
    expiring = {
        "purpose": "user_data",
        "expires_after[anchor]": "created_at",
        "expires_after[seconds]": "3600",
    }
    other = _ok(http.post("/v1/files", data=expiring, **upload))
    assert other["expires_at"] > other["created_at"]
    _ok(http.get("/v1/files"))
    assert "expires_at" not in _ok(http.get(f"/v1/files/{kept}"))
    _ok(http.delete(f"/v1/files/{other['id']}"))
    assert http.get(f"/v1/files/{other['id']}").status_code == 404
    return kept


def _ask_for_uploads(http: httpx2.Client) -> None:
    begun = {"filename": "a.txt", "purpose": "user_data", "bytes": 3, "mime_type": "text/plain"}
    completed, cancelled = (_ok(http.post("/v1/uploads", json=begun))["id"] for _ in range(2))
    part = _ok(http.post(f"/v1/uploads/{completed}/parts", files={"data": b"abc"}))["id"]
    _ok(http.post(f"/v1/uploads/{completed}/complete", json={"part_ids": [part]}))
    _ok(http.post(f"/v1/uploads/{cancelled}/cancel"))


def _ask_for_jobs(http: httpx2.Client, database: Database, file: str) -> None:
    asked = {"model": BASE_MODEL, "training_file": file}
    job = _ok(http.post("/v1/fine_tuning/jobs", json=asked, timeout=120))["id"]  # waits for the file's check
    with database.writer() as session:
        metrics = {"step": 1, "train_loss": 0.5, "valid_loss": None}
        session.add(
            Checkpoint(job_id=job, step_number=1, fine_tuned_model_checkpoint="ft:c", metrics=metrics)
        )
    for action in ("pause", "resume", "cancel"):
        _ok(http.post(f"/v1/fine_tuning/jobs/{job}/{action}"))
    for path in ("", f"/{job}", f"/{job}/events"):
        _ok(http.get(f"/v1/fine_tuning/jobs{path}"))
    [checkpoint] = _ok(http.get(f"/v1/fine_tuning/jobs/{job}/checkpoints"))["data"]
    assert checkpoint["metrics"] == {"step": 1, "train_loss": 0.5}


def _ask_for_models(http: httpx2.Client, database: Database) -> None:
    with database.writer() as session:
        project = session.query(FineTuningJob).one().project_id
        name = f"ft:{BASE_MODEL}:default::1"
        session.add(Adapter(name=name, project_id=project, base_model=BASE_MODEL, storage_key="none"))
    base, _ = _ok(http.get("/v1/models"))["data"]
    assert base["created"] > 1_700_000_000
    _ok(http.get(f"/v1/models/{name}"))
    _ok(http.delete(f"/v1/models/{name}"))


def _ask_for_graders(http: httpx2.Client) -> None:
    grader = {"type": "string_check", "name": "g", "input": "{{sample.output_text}}", "reference": "x"}
    grader |= {"operation": "eq"}
    _ok(http.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": grader}))
    _ok(http.post("/v1/fine_tuning/alpha/graders/run", json={"grader": grader, "model_sample": "x"}))


def _ask_for_batches(http: httpx2.Client) -> None:
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": ASK}
    upload = {"files": {"file": ("batch.jsonl", json.dumps(line).encode())}}
    file = _ok(http.post("/v1/files", data={"purpose": "batch"}, **upload))["id"]
    asked = {"input_file_id": file, "endpoint": line["url"], "completion_window": "24h"}
    batch = _ok(http.post("/v1/batches", json=asked))["id"]
    _ok(http.get("/v1/batches"))
    _ok(http.get(f"/v1/batches/{batch}"))
    assert http.post(f"/v1/batches/{batch}/cancel").status_code in (200, 409)


def _ask_for_projects(http: httpx2.Client) -> None:
    projects = "/v1/organization/projects"
    project = _ok(http.post(projects, json={"name": "Support"}))["id"]
    _ok(http.get(projects))
    _ok(http.get(f"{projects}/{project}"))
    _ok(http.post(f"{projects}/{project}", json={"name": "Customer support"}))
    accounts = f"{projects}/{project}/service_accounts"
    limited = {"role": "inference", "models": [BASE_MODEL], "expires_in_seconds": 3600}
    account = _ok(http.post(accounts, json={"name": "web"} | limited))["id"]
    _ok(http.get(accounts))
    _ok(http.get(f"{accounts}/{account}"))
    key = _ok(http.post(f"{accounts}/{account}/api_keys", json=limited))["id"]
    keys = f"{projects}/{project}/api_keys"
    _ok(http.get(keys))
    _ok(http.get(f"{keys}/{key}"))
    _ok(http.post(f"{keys}/{key}", json={"expires_in_seconds": 60}))
    _ok(http.post(f"{projects}/{project}/rate_limits/rl-all", json={"max_requests_per_1_minute": 60}))
    _ok(http.get(f"{projects}/{project}/rate_limits"))
    _ok(http.delete(f"{keys}/{key}"))
    _ok(http.delete(f"{accounts}/{account}"))
    _ok(http.post(f"{projects}/{project}/archive"))
    _ok(http.get(projects, params={"include_archived": True}))
    for groups in ([], ["project_id"], ["model", "project_id"], ["api_key_id"]):
        query: dict[str, Any] = {"start_time": 1_700_000_000, "group_by": groups}
        _ok(http.get("/v1/organization/usage/completions", params=query))


def _ask_for_webhooks(http: httpx2.Client, settings: Settings) -> None:
    _ok(http.get("/v1/webhook_event_types"))
    settings.webhook_private_networks.append(ip_network("127.0.0.0/8"))
    with run_receiver() as receiver:
        asked = {"name": "ours", "url": receiver.url, "event_types": ["batch.completed"]}
        endpoint = _ok(http.post("/v1/webhook_endpoints", json=asked))["id"]
        _ok(http.get("/v1/webhook_endpoints"))
        path = f"/v1/webhook_endpoints/{endpoint}"
        _ok(http.get(path))
        _ok(http.post(path, json={"name": "theirs"}))
        _ok(http.post(f"{path}/rotate_secret", json={}))
        _ok(http.post(f"{path}/test", json={"event_type": "batch.completed"}))
        _ok(http.delete(path))


FILE = {"id": "f", "object": "file", "bytes": 1, "created_at": 1, "filename": "f", "purpose": "batch"}


@pytest.mark.parametrize(
    "wrong",
    [{"status": None}, {"status": "processed", "expires_at": None}, {"status": "new"}, {"unknown": 1}, {}],
)
def test_the_shapes_are_strict(wrong: dict[str, Any]) -> None:
    assert validator(FileObject).is_valid(FILE | {"status": "processed"})
    assert not validator(FileObject).is_valid(FILE | wrong)
