"""Trained and served are held against each other; here transformers and PEFT stand behind vLLM's routes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from peft import PeftModel
from sqlalchemy import select
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.completions.models import Engine
from app.core.database import Database, database_now
from app.core.settings import Settings
from app.models.adapters.models import Adapter
from app.storage import open_storage
from app.storage.base import Storage
from tests.conftest import wait_until
from tests.workers.training.conftest import TINY, create, ended, run_worker

KEY = "engine-key"


@dataclass
class Reference:
    """What vLLM's routes would answer."""

    base: Path
    database: Database
    storage: Storage
    twist_tokens: Callable[[list[int]], list[int]] = lambda tokens: tokens
    twist_logprobs: Callable[[float], float] = lambda logprob: logprob
    knows_adapters: bool = True

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["model"] == TINY
        tokenizer = AutoTokenizer.from_pretrained(self.base)
        text = tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=body["add_generation_prompt"]
        )
        return {"tokens": self.twist_tokens(tokenizer(text, add_special_tokens=False).input_ids)}

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        model: Any = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.bfloat16)
        if body["model"] != TINY and self.knows_adapters:
            with self.database.reader() as session:
                key = session.get_one(Adapter, body["model"]).storage_key
            model = PeftModel.from_pretrained(model, self.storage.path(key))
        ids = torch.tensor([body["prompt"]])
        with torch.no_grad():
            scores = torch.log_softmax(model(ids).logits[0].float(), -1)
        logprobs = [float(scores[at, token]) for at, token in enumerate(body["prompt"][1:])]
        served = [None, *map(self.twist_logprobs, logprobs), -1.0]
        return {"choices": [{"logprobs": {"token_logprobs": served}}]}


@contextmanager
def running(reference: Reference) -> Iterator[None]:
    """The engine, registered as ready."""

    class Routes(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["authorization"] == f"Bearer {KEY}"
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            route = {"/tokenize": reference.tokenize, "/v1/completions": reference.complete}[self.path]
            answer = json.dumps(route(body)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Routes)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with reference.database.writer() as session:
        row = Engine(
            base_model=TINY,
            url=f"http://127.0.0.1:{server.server_port}",
            api_key=KEY,
            status="ready",
            device="cpu",
            version="reference",
            started_at=0.0,
            heartbeat_at=database_now() + 3600.0,
        )
        session.add(row)
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def reference(settings: Settings, database: Database, base_model_dir: Path) -> Reference:
    return Reference(base_model_dir, database, open_storage(settings))


def log(client: OpenAI, job_id: str) -> list[str]:
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100)][::-1]


def test_a_job_succeeds_once_an_engine_serves_what_was_trained(
    client: OpenAI, settings: Settings, database: Database, reference: Reference, tmp_path: Path
) -> None:
    job = create(client)
    with running(reference), run_worker(settings, tmp_path):
        done = ended(client, job.id)
    assert done.status == "succeeded", done.error
    lines = log(client, job.id)
    [verdict] = [line for line in lines if line.startswith("Served as trained: ")]
    assert lines.index(verdict) < lines.index("The job has successfully completed")
    with database.reader() as session:
        parity = session.get_one(Adapter, done.fine_tuned_model).parity
    assert parity is not None
    assert parity["tokens"] > 10
    assert parity["distance"] < 0.1 < 5 * parity["distance"] + parity["effect"]
    assert f"{parity['distance']:.4f}" in verdict


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"knows_adapters": False}, "the engine answers as the base alone"),
        ({"twist_logprobs": lambda logprob: logprob - 1.0}, "the engine serves something else"),
        ({"twist_logprobs": lambda _: float("nan")}, "log-probabilities are not numbers"),
        (
            {"twist_tokens": lambda tokens: [*tokens[:-1], 0]},
            "other tokens in the engine",
        ),
    ],
    ids=["base alone", "other weights", "not a number", "other template"],
)
def test_a_job_fails_where_something_else_is_served(
    fault: dict[str, Any],
    problem: str,
    client: OpenAI,
    settings: Settings,
    database: Database,
    reference: Reference,
    tmp_path: Path,
) -> None:
    for name, value in fault.items():
        setattr(reference, name, value)
    job = create(client)
    with running(reference), run_worker(settings, tmp_path):
        failed = ended(client, job.id)
    assert (failed.status, failed.error.code) == ("failed", "parity_failed")
    assert problem in failed.error.message
    assert (failed.fine_tuned_model, failed.result_files) == (None, [])
    with database.reader() as session:
        names = session.scalars(select(Adapter.name).where(Adapter.job_id == job.id)).all()
    assert all(":ckpt-step-" in name for name in names), "no model is published"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("good", [True, False])
def test_without_an_engine_it_is_published_and_compared_once_one_comes(
    good: bool, client: OpenAI, settings: Settings, database: Database, reference: Reference, tmp_path: Path
) -> None:
    reference.knows_adapters = good
    job = create(client)
    with run_worker(settings, tmp_path):
        done = ended(client, job.id)
        assert done.status == "succeeded"
        reason = "Not yet compared with an engine's answers: no engine of tiny is ready"
        assert any(line.startswith(reason) for line in log(client, job.id))

        with running(reference):
            start = "Served as trained: " if good else "The served model is not the trained one: "
            wait_until(lambda: log(client, job.id)[-1].startswith(start), "it is compared", 60)
    with database.reader() as session:
        model = session.get_one(Adapter, done.fine_tuned_model)
    assert (model.parity is not None, model.quarantine_reason is None) == (good, good)
