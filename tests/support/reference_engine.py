"""Transformers and PEFT behind vLLM's routes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from openai import OpenAI
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.completions.models import Engine
from app.core.database import Database, database_now
from app.models.adapters.models import Adapter
from app.storage.base import Storage
from tests.support.tiny_model import TINY

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
    chat_template: str | None = None

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["model"] == TINY
        tokenizer = AutoTokenizer.from_pretrained(self.base)
        messages = [
            turn | ({"reasoning_content": turn["reasoning"]} if "reasoning" in turn else {})
            for turn in body["messages"]
        ]
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=body["add_generation_prompt"],
        )
        return {"tokens": self.twist_tokens(tokenizer(text, add_special_tokens=False).input_ids)}

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        model: Any = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.bfloat16)
        if body["model"] != TINY and self.knows_adapters:
            with self.database.reader() as session:
                key = session.get_one(Adapter, body["model"]).storage_key
            with self.storage.local(key) as folder:
                model = PeftModel.from_pretrained(model, folder)
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


def log(client: OpenAI, job_id: str) -> list[str]:
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100)][::-1]
