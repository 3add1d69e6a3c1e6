"""`/v1/batches` from creation to the output file, through the official client."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from sqlalchemy import func, select, update
from starlette.responses import JSONResponse, Response
from tenacity import wait_fixed

from app.batches.input_file import MAX_BYTES
from app.batches.models import Batch, BatchAnswer
from app.core.database import Database, database_now
from app.core.settings import Settings
from app.files.models import File
from tests.app.comparisons.stub_engine import StubEngine, number_asked, reference, refusal
from tests.support import engine_responses
from tests.support.batch_files import CHAT, content, create, ended, line, lines
from tests.support.engine_stand_in import EngineStandIn
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until


def test_every_request_is_answered_in_the_order_of_the_file(
    client: OpenAI, database: Database, engine: StubEngine
) -> None:
    created = create(client, lines(range(40)), metadata={"night": "1"})
    assert (created.status, created.endpoint, created.completion_window) == ("validating", CHAT, "24h")
    assert created.expires_at == created.created_at + 24 * 3600
    done = ended(client, created.id)
    assert done.status == "completed", done.errors
    assert (done.model, done.metadata, done.error_file_id) == (BASE_MODEL, {"night": "1"}, None)
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 40, "completed": 40, "failed": 0}
    assert done.usage is not None
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (400, 120, 520)
    times = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at]
    assert None not in times
    assert times == sorted(times)  # pyright: ignore[reportArgumentType]
    output = content(client, done.output_file_id)
    assert [each["custom_id"] for each in output] == [f"pot-{number}" for number in range(40)]
    for number, each in enumerate(output):
        assert each.keys() == {"id", "custom_id", "response", "error"}
        assert each["id"].startswith("batch_req_")
        assert each["error"] is None
        assert each["response"]["status_code"] == 200
        assert each["response"]["request_id"].startswith("req_")
        answer = each["response"]["body"]
        assert answer["choices"][0]["message"]["content"] == reference(number)
    assert len({each["id"] for each in output}) == 40
    assert all(body["priority"] == 1 for body in engine.bodies)
    file = client.files.retrieve(done.output_file_id or "")
    assert (file.purpose, file.status, file.expires_at) == ("batch_output", "processed", None)
    wait_until(lambda: _rows(database) == 0, "rows go")


def test_requests_that_fail_are_in_the_error_file(client: OpenAI, engine: StubEngine) -> None:
    engine.respond = lambda body: refusal() if number_asked(body) % 2 else reference(number_asked(body))
    done = ended(client, create(client, lines(range(5))).id)
    assert done.status == "completed"
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (3, 2)
    assert [each["custom_id"] for each in content(client, done.output_file_id)] == ["pot-0", "pot-2", "pot-4"]
    errors = content(client, done.error_file_id)
    assert [each["custom_id"] for each in errors] == ["pot-1", "pot-3"]
    assert errors[0]["response"]["status_code"] == 400
    assert errors[0]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert errors[0]["error"] is None


@pytest.mark.one_database
def test_completions_and_a_packed_file(client: OpenAI, engine: EngineStandIn) -> None:
    engine.respond = lambda body: body["prompt"]  # pyright: ignore[reportAttributeAccessIssue]
    bodies = [{"model": BASE_MODEL, "prompt": f"soup {number}"} for number in range(3)]
    requests = [
        {"custom_id": f"{number}", "method": "POST", "url": "/v1/completions", "body": body}
        for number, body in enumerate(bodies)
    ]
    packed = gzip.compress("\n\n".join(map(json.dumps, requests)).encode())
    done = ended(client, create(client, packed, "/v1/completions").id)
    assert done.status == "completed"
    assert done.request_counts is not None
    assert done.request_counts.total == 3
    bodies[0]["suffix"] = "!"
    refused = json.dumps(requests[0])
    failed = ended(client, create(client, refused, "/v1/completions").id)
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert (failed.errors.data[0].code, failed.errors.data[0].param) == (
        "unsupported_parameter",
        "body.suffix",
    )


def test_responses(client: OpenAI, engine: StubEngine) -> None:
    engine.respond = lambda body: JSONResponse(engine_responses.whole(body))
    bodies = [{"model": BASE_MODEL, "input": f"soup {number}", "store": number == 0} for number in range(2)]
    requests = [
        {"custom_id": f"{number}", "method": "POST", "url": "/v1/responses", "body": body}
        for number, body in enumerate(bodies)
    ]
    done = ended(client, create(client, "\n".join(map(json.dumps, requests)), "/v1/responses").id)
    assert done.status == "completed", done.errors
    answers = [each["response"]["body"] for each in content(client, done.output_file_id)]
    assert [(each["object"], each["status"]) for each in answers] == [("response", "completed")] * 2
    assert done.usage is not None
    assert done.usage.output_tokens == sum(each["usage"]["output_tokens"] for each in answers) > 0
    assert client.responses.retrieve(answers[0]["id"]).output_text
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answers[1]["id"])


INVALID: dict[str | bytes, tuple[str, str, str | None, int | None]] = {
    # what is sent: the code, the param and the line that come back
    "not json\n": ("invalid_json", "", None, 1),
    b'{"custom_id": "\xff"}\n': ("invalid_json", "", None, 1),
    line(1, custom_id="\ud800"): ("invalid_json", "", None, 1),
    line(1, body={"seed": 5}).replace("5", "[" * 100_000 + "]" * 100_000): ("invalid_json", "", None, 1),
    "[1]\n": ("invalid_request", "", None, 1),
    line(1) + "\n" + line(2, custom_id=None): ("missing_custom_id", "", "custom_id", 3),
    line(1, custom_id=7): ("invalid_custom_id", "", "custom_id", 1),
    line(1) + line(2) + line(1): ("duplicate_custom_id", "Line 1 has the same", "custom_id", 3),
    line(1, method="GET"): ("invalid_method", "", "method", 1),
    line(1, url="/v1/completions"): ("invalid_url", CHAT, "url", 1),
    line(1, body={"messages": []}): ("invalid_value", "", "body.messages", 1),
    line(1, body={"messages": [{"role": "cook", "content": ""}]}): (
        "invalid_value",
        "",
        "body.messages[0].role",
        1,
    ),
    line(1, body={"priority": 0}): ("unknown_parameter", "priority", "body.priority", 1),
    line(1, body={"stream": True}): ("invalid_value", "stream", "body.stream", 1),
    line(1) + line(2, body={"model": "other"}): ("mismatched_model", BASE_MODEL, "body.model", 2),
    line(1, body={"model": "nobody"}): ("model_not_found", "nobody", "body.model", 1),
    line(1, body={"model": 5}): ("invalid_value", "", "body.model", 1),
    line(1, body={"model": ""}): ("invalid_value", "", "body.model", 1),
    line(1, body={"model": "soup\0"}): ("invalid_value", "", "body.model", 1),
    line(1, body={"model": "x" * 10_000}): ("invalid_value", "", "body.model", 1),
    line(1, body={"stop": "," * 2**20}): ("invalid_value", "524,288 values", "body", 1),
    json.dumps({"custom_id": "a", "method": "POST", "url": CHAT}): ("invalid_value", "", "body", 1),
    "\n": ("empty_file", "", None, None),
    "PAR1" + "x" * 100: ("parquet", "", None, 1),
}


def test_what_is_wrong_with_a_file_is_told_with_its_line(client: OpenAI, engine: StubEngine) -> None:
    created = {sent: create(client, sent).id for sent in INVALID}
    for sent, (code, words, param, number) in INVALID.items():
        done = ended(client, created[sent])
        assert done.status == "failed", sent
        assert done.failed_at is not None
        assert done.errors is not None
        assert done.errors.object == "list"
        assert done.errors.data is not None
        first = done.errors.data[0]
        assert (first.code, first.param, first.line) == (code, param, number), (sent, first)
        assert words in (first.message or "")
        assert done.output_file_id is None
    assert engine.bodies == []


@pytest.mark.one_database
def test_the_metrics_count_batches(client: OpenAI, http: httpx2.Client, engine: StubEngine) -> None:
    for sent in (lines(range(1)), "nothing", "nothing"):
        ended(client, create(client, sent).id)
    metrics = http.get("/metrics").text
    assert 'toque_batches{status="completed"} 1.0' in metrics
    assert 'toque_batches{status="failed"} 2.0' in metrics


@pytest.mark.one_database
def test_at_most_a_hundred_errors_are_listed(client: OpenAI, engine: StubEngine) -> None:
    done = ended(client, create(client, lines(range(150), method="PUT")).id)
    assert done.errors is not None
    assert len(done.errors.data or ()) == 100


@pytest.mark.one_database
def test_a_file_has_a_limited_number_of_requests(client: OpenAI, engine: StubEngine) -> None:
    done = ended(client, create(client, lines(range(50_001))).id)
    assert done.errors is not None
    assert done.errors.data is not None
    assert [(each.code, each.line) for each in done.errors.data] == [("too_many_requests", 50_001)]


@pytest.mark.one_database
def test_requests_to_create_that_are_refused(client: OpenAI, http: httpx2.Client, database: Database) -> None:
    file = client.files.create(file=("a.jsonl", lines(range(1)).encode()), purpose="batch").id
    other = client.files.create(file=("a.jsonl", lines(range(1)).encode()), purpose="evals").id
    large = client.files.create(file=("a.jsonl", lines(range(2)).encode()), purpose="batch").id
    wanted: dict[str, Any] = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    refused = [
        (wanted | {"endpoint": "/v1/embeddings"}, 400, "endpoint"),
        (wanted | {"completion_window": "1h"}, 400, "completion_window"),
        (wanted | {"input_file_id": other}, 400, "input_file_id"),
        (wanted | {"input_file_id": large}, 400, "input_file_id"),
        (wanted | {"input_file_id": "file-none"}, 404, "input_file_id"),
        (wanted | {"metadata": {"k": "v" * 513}}, 400, "metadata.k"),
        (
            wanted | {"output_expires_after": {"anchor": "created_at", "seconds": 5}},
            400,
            "output_expires_after.seconds",
        ),
        (wanted | {"priority": 1}, 400, "priority"),
        ({"input_file_id": file, "endpoint": CHAT}, 400, "completion_window"),
    ]
    with database.writer() as session:
        session.execute(update(File).where(File.id == large).values(bytes=MAX_BYTES + 1))
    for body, status, param in refused:
        answer = http.post("/v1/batches", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert list(client.batches.list()) == []


@pytest.mark.one_database
def test_lists_are_paged_and_belong_to_a_project(
    client: OpenAI, other_client: OpenAI, engine: StubEngine
) -> None:
    ids = [create(client, lines(range(1))).id for _ in range(3)]
    assert [each.id for each in client.batches.list(limit=2)] == ids[::-1]
    assert [each.id for each in client.batches.list(after=ids[1])] == ids[:1]
    assert list(other_client.batches.list()) == []
    for call in (other_client.batches.retrieve, other_client.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            call(ids[0])


def test_a_batch_is_created_once(client: OpenAI, engine: StubEngine) -> None:
    file = client.files.create(file=("a.jsonl", lines(range(1)).encode()), purpose="batch").id
    batches = [
        client.batches.create(
            input_file_id=file,
            endpoint=CHAT,
            completion_window="24h",
            extra_headers={"Idempotency-Key": "one"},
        )
        for _ in range(2)
    ]
    assert batches[0].id == batches[1].id
    assert len(list(client.batches.list())) == 1


def test_a_cancelled_batch_keeps_its_answers(client: OpenAI, engine: StubEngine) -> None:
    engine.hold_after = 5
    engine.go_on.clear()
    created = create(client, lines(range(30)), output_expires_after={"anchor": "created_at", "seconds": 3600})
    wait_until(lambda: _completed(client, created.id) == 5, "five are answered")
    cancelled = client.batches.cancel(created.id)
    assert cancelled.status == "cancelling"
    assert client.batches.cancel(created.id).status in ("cancelling", "cancelled")
    done = ended(client, created.id)
    assert done.status == "cancelled"
    assert done.cancelled_at is not None
    output, errors = content(client, done.output_file_id), content(client, done.error_file_id)
    assert len(output) == 5
    assert {each["error"]["code"] for each in errors} == {"batch_cancelled"}
    assert {each["response"] is None for each in errors} == {True}
    ids = [each["custom_id"] for each in [*output, *errors]]
    assert sorted(ids) == sorted(f"pot-{number}" for number in range(30))
    wait_until(lambda: engine.in_flight == 0, "the engine is left alone")
    file = client.files.retrieve(done.output_file_id or "")
    assert file.expires_at == pytest.approx(file.created_at + 3600, abs=2)
    with pytest.raises(openai.ConflictError) as conflict:
        client.batches.cancel(_completed_batch(client, engine))
    assert conflict.value.code == "batch_completed"


def test_an_overdue_batch_expires_with_its_answers(
    client: OpenAI, database: Database, engine: StubEngine
) -> None:
    engine.hold_after = 3
    engine.go_on.clear()
    created = create(client, lines(range(8)))
    wait_until(lambda: _completed(client, created.id) == 3, "three are answered")
    with database.writer() as session:
        session.execute(update(Batch).values(expires_at=database_now() - 1))
    done = ended(client, created.id)
    assert (done.status, done.expired_at is None) == ("expired", False)
    assert len(content(client, done.output_file_id)) == 3
    errors = content(client, done.error_file_id)
    assert [each["error"]["code"] for each in errors] == ["batch_expired"] * 5


def test_many_long_batches_hold_up_no_others(
    client: OpenAI, other_client: OpenAI, database: Database, engine: StubEngine
) -> None:
    engine.hold_after = 0
    engine.go_on.clear()
    long = [create(client, lines(range(1))).id for _ in range(9)]
    wait_until(lambda: engine.in_flight == 4, "four are asked")
    others = create(other_client, lines(range(50, 51))).id
    wait_until(lambda: number_asked(engine.bodies[-1]) == 50, "another project's is asked")
    wait_until(lambda: engine.in_flight == 5, "it is held, too")
    assert len(engine.bodies) == 5
    assert ended(client, create(client, "nothing").id).status == "failed"
    client.batches.cancel(long[-1])
    assert ended(client, long[-1]).status == "cancelled"
    with database.writer() as session:
        session.execute(update(Batch).where(Batch.id.in_(long)).values(expires_at=database_now() - 1))
    assert [ended(client, each).status for each in long[:-1]] == ["expired"] * 8
    engine.go_on.set()
    assert ended(other_client, others).status == "completed"


def test_a_batch_ends_although_its_file_is_lost_or_damaged(
    client: OpenAI, database: Database, settings: Settings, engine: StubEngine
) -> None:
    engine.hold_after = 2
    engine.go_on.clear()
    created = create(client, lines(range(4)))
    wait_until(lambda: _completed(client, created.id) == 2, "two are answered")
    _stored(settings, database, created.input_file_id).write_bytes(b"PAR1")
    client.batches.cancel(created.id)
    done = ended(client, created.id)
    assert (done.status, done.error_file_id) == ("cancelled", None)
    assert len(content(client, done.output_file_id)) == 2

    file = client.files.create(file=("a.jsonl", lines(range(3)).encode()), purpose="batch").id
    _stored(settings, database, file).unlink()
    lost = client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h").id
    with database.writer() as session:
        session.execute(update(Batch).where(Batch.id == lost).values(expires_at=database_now() - 1))
    done = ended(client, lost)
    assert (done.status, done.output_file_id, done.error_file_id) == ("expired", None, None)


def test_the_input_file_may_be_deleted_meanwhile(
    client: OpenAI, database: Database, engine: StubEngine
) -> None:
    engine.hold_after = 0
    engine.go_on.clear()
    created = create(client, lines(range(20)))
    wait_until(lambda: engine.bodies, "it has begun")
    client.files.delete(created.input_file_id)
    engine.go_on.set()
    assert ended(client, created.id).status == "completed"


@pytest.mark.one_database
def test_a_refusal_by_the_engine_is_tried_again_where_that_may_help(
    client: OpenAI, engine: StubEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.completions.retrying.BACK_OFF", wait_fixed(0.05))
    busy = [Response(status_code=status) for status in (429, 503) * 5]
    failures = iter([Response(status_code=500), *busy])
    engine.respond = lambda body: next(failures, None) or reference(number_asked(body))
    done = ended(client, create(client, lines(range(1))).id)
    assert done.request_counts is not None
    assert done.request_counts.completed == 1
    assert len(engine.bodies) == 12, "a busy engine is waited for, however long that takes"


def _rows(database: Database) -> int | None:
    with database.reader() as session:
        return session.scalar(select(func.count(BatchAnswer.number)))


def _completed(client: OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    assert counts is not None
    return counts.completed


def _stored(settings: Settings, database: Database, file_id: str) -> Path:
    with database.reader() as session:
        return settings.storage_root / session.get_one(File, file_id).storage_key


def _completed_batch(client: OpenAI, engine: StubEngine) -> str:
    engine.go_on.set()
    return ended(client, create(client, lines(range(1))).id).id
