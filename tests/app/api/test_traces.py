"""Traces: one from the caller through the gateway to the engine, sent by OTLP, where they are switched on."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import httpx2
import pytest

from app.core.database import Database
from app.core.tracing import is_tracing
from app.fine_tuning.models import FineTuningJob
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.otlp_receiver import OtlpReceiver, run_receiver, traced
from tests.support.service import BASE_MODEL
from tests.support.training_files import training_bytes

pytestmark = pytest.mark.one_database
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = f"00-{TRACE}-b7ad6b7169203331-01"
CHAT = "POST /v1/chat/completions"


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with run_receiver() as receiver, traced(receiver, "toque-api"):
        yield receiver


def test_a_trace_from_the_caller_to_the_engine(
    http: httpx2.Client, engine: EngineStandIn, receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="toque.access")
    answer = http.post("/v1/chat/completions", json=ASK | {"stream": True}, headers={"traceparent": CALLER})
    [span] = receiver.wait_for(CHAT)
    assert (span.service, span.trace_id, span.parent_id) == ("toque-api", TRACE, "b7ad6b7169203331")
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["http.route"] == "/v1/chat/completions"
    assert span.attributes["gen_ai.response.model"] == BASE_MODEL
    assert span.attributes["toque.request_id"] == answer.headers["x-request-id"]
    assert span.attributes["toque.project_id"].startswith("proj_")
    assert engine.headers["traceparent"] == f"00-{TRACE}-{span.span_id}-01"
    assert [vars(each)["trace_id"] for each in caplog.records if each.name == "toque.access"] == [TRACE]


@pytest.mark.parametrize(
    "made_up",
    [None, "", "00-x-y-01", f"00-{'0' * 32}-{'0' * 16}-01", "é" * 100],
    ids=["none", "empty", "letters", "zeros", "bytes"],
)
def test_a_trace_of_its_own(
    http: httpx2.Client, engine: EngineStandIn, receiver: OtlpReceiver, made_up: str | None
) -> None:
    headers = {} if made_up is None else {"traceparent": made_up.encode("latin-1")}
    http.post("/v1/chat/completions", json=ASK, headers=headers).raise_for_status()
    [span] = receiver.wait_for(CHAT)
    assert span.parent_id == ""
    assert engine.headers["traceparent"].startswith(f"00-{span.trace_id}-{span.span_id}-")


def test_requests_that_fail(http: httpx2.Client, receiver: OtlpReceiver) -> None:
    http.get("/health/live")
    http.get("/v1/models/nothing")
    http.get("/v1/nothing")
    [known] = receiver.wait_for("GET /v1/models/{model}")
    [unknown] = receiver.wait_for("GET")
    assert known.attributes["http.response.status_code"] == 404
    assert unknown.attributes["http.response.status_code"] == 404
    assert len(receiver.spans) == 2


def test_a_job_remembers_its_trace(http: httpx2.Client, database: Database, receiver: OtlpReceiver) -> None:
    uploaded = http.post(
        "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("t.jsonl", training_bytes(12))}
    )
    body = {"model": BASE_MODEL, "training_file": uploaded.json()["id"]}
    created = http.post("/v1/fine_tuning/jobs", json=body, headers={"traceparent": CALLER})
    [span] = receiver.wait_for("POST /v1/fine_tuning/jobs")
    with database.reader() as session:
        job = session.get_one(FineTuningJob, created.json()["id"])
    assert job.traceparent == f"00-{TRACE}-{span.span_id}-01"


def test_nothing_is_passed_on_where_there_are_no_traces(http: httpx2.Client, engine: EngineStandIn) -> None:
    assert not is_tracing()
    http.post("/v1/chat/completions", json=ASK, headers={"traceparent": CALLER}).raise_for_status()
    assert "traceparent" not in engine.headers


def test_nothing_is_imported_where_there_are_no_traces() -> None:
    script = (
        "import sys, app.api.main\nfrom app.core.tracing import span, tracing\n"
        "with tracing('x'), span('y') as recorded: assert recorded is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_the_extra_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from app.core.tracing import tracing

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with tracing("x"):
        assert not is_tracing()
    assert "requirements/otel.txt" in caplog.text
