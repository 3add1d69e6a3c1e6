"""`/metrics`: what it says of requests, answers and the deployment."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import select, update

from app.api import deployment_metrics
from app.api.metrics import Metrics
from app.completions.model_labels import ModelLabels
from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning import worker_registry
from app.fine_tuning.models import FineTuningJob, Worker
from app.storage.local import LocalStorage
from app.webhooks.models import WebhookDelivery, WebhookEndpoint
from tests.support.engine_stand_in import ASK, USAGE, EngineStandIn
from tests.support.job_rows import add_job
from tests.support.metrics import await_metrics, key
from tests.support.service import BASE_MODEL, Service, run_service
from tests.support.waiting import wait_until
from tests.support.worker_rows import add_worker


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A worker's row, which nobody renews, counts for as long as a test takes."""
    return settings.model_copy(update={"heartbeat_seconds": 60.0})


CHAT = {"gen_ai_operation_name": "chat", "gen_ai_response_model": BASE_MODEL}


@pytest.mark.one_database
def test_requests_by_their_route(http: httpx2.Client) -> None:
    for place in ("/v1/models/nothing", "/v1/models/nobody", "/no/such/place"):
        http.get(place)
    name = "http_server_request_duration_seconds_count"
    labels = {"http_request_method": "GET", "http_response_status_code": "404"}
    active = key("http_server_active_requests")
    found = await_metrics(http, lambda found: found[active] == 1, "all but this one have ended")
    assert found[key(name, http_route="/v1/models/{model}", **labels)] == 2
    assert found[key(name, http_route="unmatched", **labels)] == 1
    assert "nothing" not in repr(found)


@pytest.mark.one_database
def test_answers_by_their_model(http: httpx2.Client, engine: EngineStandIn) -> None:
    http.post("/v1/chat/completions", json=ASK).raise_for_status()
    began = time.monotonic()
    http.post("/v1/chat/completions", json=ASK | {"stream": True}).raise_for_status()
    took = time.monotonic() - began
    http.post("/v1/chat/completions", json=ASK | {"model": "nothing"})
    duration = "gen_ai_server_request_duration_seconds_count"
    found = await_metrics(
        http,
        lambda found: found.get(key(duration, **CHAT)) == 2 and "vllm:num_requests_waiting" in repr(found),
        "two answers and the engine's load",
    )
    tokens = "gen_ai_client_token_usage_sum"
    assert found[key(tokens, gen_ai_token_type="input", **CHAT)] == 2 * USAGE["prompt_tokens"]
    assert found[key(tokens, gen_ai_token_type="output", **CHAT)] == 2 * USAGE["completion_tokens"]
    assert found[key("gen_ai_server_time_to_first_token_seconds_count", **CHAT)] == 1
    assert found[key("gen_ai_server_time_per_output_token_seconds_count", **CHAT)] == 1
    assert 0 < found[key("gen_ai_server_time_per_output_token_seconds_sum", **CHAT)] < took
    assert found[key("toque_gateway_queue_seconds_count", **CHAT)] == 2
    [waiting] = [value for (name, _), value in found.items() if name == "vllm:num_requests_waiting"]
    assert waiting == 2
    assert "nothing" not in repr(found)


def test_the_deployment(service: Service, http: httpx2.Client, client: OpenAI, database: Database) -> None:
    reported = time.time()
    add_worker(database)
    client.files.create(file=("x", b"x" * 1000), purpose="batch")
    now = time.time()
    with database.writer() as session:
        add_job(session)
        job = session.get_one(FineTuningJob, "ftjob-t")
        for number, columns in enumerate(
            (
                {"status": "queued", "created_at": now - 100},
                {"status": "running", "lease_until": now + 100},
                {"status": "running", "lease_until": now - 100},
            )
        ):
            copied = {
                name: getattr(job, name) for name in ("project_id", "training_file_id", "model", "seed")
            }
            row = {"id": f"ftjob-{number}", "method": "supervised", "hyperparameters": {}} | copied | columns
            session.add(FineTuningJob(**row))
    found = await_metrics(http, lambda found: found[key("toque_jobs", status="queued")] == 1, "the job")
    assert found[key("toque_jobs", status="running")] == 2
    assert found[key("toque_jobs", status="failed")] == 0
    assert 100 <= found[key("toque_job_queue_seconds")] < 200
    assert found[key("toque_queued_jobs", gpus="1")] == 1
    assert found[key("toque_leases", resource="fine_tuning_job", state="held")] == 1
    assert found[key("toque_leases", resource="fine_tuning_job", state="expired")] == 1
    assert found[key("toque_leases", resource="comparison", state="expired")] == 0
    assert found[key("toque_workers")] == found[key("toque_database_up")] == 1
    assert found[key("toque_worker_memory_bytes", worker="worker_1")] == 2**20
    age = found[key("toque_worker_heartbeat_age_seconds", worker="worker_1")]
    assert 0 <= age <= time.time() - reported
    of_worker = {"device": "cpu", "hostname": "h", "version": "0", "worker": "worker_1"}
    assert found[key("toque_worker_info", **of_worker)] == 1
    assert found[key("toque_worker_busy", worker="worker_1")] == 1
    assert found[key("toque_file_bytes")] >= 1000
    assert found[key("toque_storage_free_bytes")] > 0
    assert found[key("toque_webhook_deliveries_pending")] == 0


def test_deliveries_that_wait(http: httpx2.Client, database: Database) -> None:
    endpoint = http.post(
        "/v1/webhook_endpoints",
        json={"name": "x", "url": "https://example.com/", "event_types": ["batch.completed"]},
    ).json()
    with database.writer() as session:
        for status in ("pending", "pending", "failed"):
            session.add(
                WebhookDelivery(
                    project_id=session.scalar(select(WebhookEndpoint.project_id)),
                    endpoint_id=endpoint["id"],
                    event_id="evt_1",
                    event_type="batch.completed",
                    event_created_at=0,
                    data={},
                    status=status,
                    created_at=time.time() - 50,
                )
            )
    found = await_metrics(
        http, lambda found: found[key("toque_webhook_deliveries_pending")] == 2, "the deliveries"
    )
    assert 50 <= found[key("toque_webhook_delivery_age_seconds")] < 100


def test_a_silent_worker_does_not_count(http: httpx2.Client, database: Database) -> None:
    add_worker(database)
    with database.writer() as session:
        session.execute(update(Worker).values(heartbeat_at=Worker.heartbeat_at - 180.0))
    found = await_metrics(http, lambda found: found[key("toque_workers")] == 0, "its silence")
    assert 180 <= found[key("toque_worker_heartbeat_age_seconds", worker="worker_1")] < 240
    with database.writer() as session:
        session.execute(update(Worker).values(heartbeat_at=Worker.heartbeat_at - 86400.0))
        worker_registry.delete_silent(session)
    await_metrics(http, lambda found: "worker_1" not in repr(found), "its end")


@pytest.mark.one_database
def test_without_a_database(settings: Settings) -> None:
    url = "postgresql+psycopg://nobody@127.0.0.1:1/none?connect_timeout=1"
    with run_service(settings.model_copy(update={"database_url": url})) as service, service.http() as http:
        found = await_metrics(http, lambda found: found[key("toque_database_up")] == 0, "metrics")
    assert key("http_server_active_requests") in found


@pytest.mark.one_database
def test_a_storage_that_is_away_hides_nothing_else(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free_bytes(_: LocalStorage) -> int:
        raise OSError("stale file handle")

    monkeypatch.setattr(LocalStorage, "free_bytes", free_bytes)
    found = await_metrics(http, lambda found: found[key("toque_database_up")] == 1, "metrics")
    assert key("toque_storage_free_bytes") not in found
    assert found[key("toque_file_bytes")] == 0


@pytest.mark.one_database
def test_strangers_do_not_occupy_the_service(
    service: Service, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[None] = []
    asked_for: list[None] = []
    may_end = threading.Event()
    begin = Metrics.begin

    def count(self: Metrics) -> None:
        asked_for.append(None)
        begin(self)

    def hang(*_: object) -> list[object]:
        reads.append(None)
        assert may_end.wait(120)
        return []

    monkeypatch.setattr(deployment_metrics, "collect", hang)
    monkeypatch.setattr(Metrics, "begin", count)
    with ThreadPoolExecutor(60) as strangers, service.http(None) as stranger:
        asked = [strangers.submit(stranger.get, "/metrics") for _ in range(60)]
        wait_until(lambda: len(asked_for) == 60, "all have asked, or another would be read for the last")
        assert http.get("/v1/files").status_code == 200  # in one of the threads that all share
        assert stranger.get("/health/ready").status_code == 503
        may_end.set()
        assert {each.result().status_code for each in asked} == {200}
    assert len(reads) == 1


def test_only_the_models_that_are_asked_most_have_labels() -> None:
    forgotten: list[str] = []
    labels = ModelLabels(forgotten.append, most=2)
    assert [labels.label(name) for name in ("a", "a", "b", "c")] == ["a", "a", "b", "other"]
    assert labels.label("c") == "c"  # twice as often as b
    assert forgotten == ["b"]
    assert labels.label("b") == "other"
    seen = {labels.label(f"model {number % 500}") for number in range(20_000)}
    assert "other" in seen
    assert labels.label("a") in ("a", "other")
