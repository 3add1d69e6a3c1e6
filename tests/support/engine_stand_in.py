"""A stand-in engine for faults that a real one does not show on request; real answers are in end_to_end.

As a process of its own, to be frozen or killed: `python -m tests.support.engine_stand_in SOCKET`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from app.completions.models import Engine
from app.core.database import Database, database_now
from tests.support import engine_responses
from tests.support.service import BASE_MODEL
from tests.support.waiting import listens, wait_until

ENGINE_KEY = "engine-key"
DEATH = (
    'data: {"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root '
    'cause.", "type": "InternalServerError", "param": null, "code": 500}}\n\n'
)
"""vLLM's last words in a stream when its model process has died, before `[DONE]`."""
USAGE = {"prompt_tokens": 5, "total_tokens": 8, "completion_tokens": 3}


class EngineStandIn:
    """Behaves as it is told and remembers what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: Mapping[str, str] = {}
        """Of the last request."""
        self.behaviour = "answer"
        self.refusal = "This model's maximum context length is 2048 tokens."
        """What it says when it refuses."""
        self.refused: str | None = None
        """The parameter that it names when it refuses."""
        self.adapters: list[str] | None = None
        """In its memory; None: it does not say, as others' vLLM."""
        self.on_request: Callable[[], object] = lambda: None
        """What happens before it answers."""
        self.chunks_sent = 0
        self.tokens = 0
        self.disconnected = threading.Event()
        self.api_key = ENGINE_KEY
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route("/toque/load", self._load),
                Route("/v1/{path:path}", self._answer, methods=["POST"]),
            ]
        )

    async def _health(self, request: Request) -> Response:
        return Response(status_code=503 if self.behaviour == "ill" else 200)

    async def _load(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {self.api_key}"
        if self.adapters is None:
            return Response(status_code=404)
        return JSONResponse({"requests": 5, "adapters": self.adapters})

    async def _metrics(self, request: Request) -> Response:
        """As vLLM writes them; 40 tokens more each time."""
        assert request.headers["authorization"] == f"Bearer {self.api_key}"
        self.tokens += 40
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            'vllm:num_requests_running{engine="0"} 3.0',
            "# TYPE vllm:num_requests_waiting gauge",
            'vllm:num_requests_waiting{engine="0"} 2.0',
            "# TYPE vllm:kv_cache_usage_perc gauge",
            'vllm:kv_cache_usage_perc{engine="0"} 0.25',
            "# TYPE vllm:generation_tokens counter",
            f'vllm:generation_tokens_total{{engine="0"}} {self.tokens}',
            "# TYPE vllm:lora_requests_info gauge",
            *(
                f'vllm:lora_requests_info{{max_lora="2",running_lora_adapters="{names}",'
                f'waiting_lora_adapters=""}} {at}'
                for at, names in ((1.0, "a"), (4.0, ""), (3.0, "b"), (2.0, "c,b"))
            ),
        ]
        return Response("\n".join([*lines, ""]), media_type="text/plain")

    async def _answer(self, request: Request) -> Response:  # noqa: PLR0911 - one for each behaviour
        if request.headers["authorization"] != f"Bearer {self.api_key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        body = await request.json()
        self.bodies.append(body)
        self.headers = request.headers
        await to_thread.run_sync(self.on_request)
        if self.behaviour == "refuse in the stream":
            error = {"message": self.refusal, "type": "BadRequestError", "param": self.refused, "code": 400}
            events = f"data: {json.dumps({'error': error})}\n\ndata: [DONE]\n\n"
            return Response(events, media_type="text/event-stream")
        if self.behaviour == "refuse":
            error = {"message": self.refusal, "type": "BadRequestError", "param": self.refused, "code": 400}
            return JSONResponse({"error": error}, 400)
        if self.behaviour == "unknown":
            return JSONResponse({"error": {"message": "The model does not exist.", "code": 404}}, 404)
        if self.behaviour in ("fail", "ill"):
            return Response("Internal Server Error: /secret/path.py line 3", 500)
        if self.behaviour == "silent":
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.disconnected.set()
            return Response()
        if body.get("stream") and request.url.path == "/v1/responses":
            return StreamingResponse(self._events(body), media_type="text/event-stream")
        if body.get("stream"):
            return StreamingResponse(self._chunks(body), media_type="text/event-stream")
        if self.behaviour == "break":
            return StreamingResponse(self._half(), headers={"content-length": "100"})
        if request.url.path == "/v1/responses":
            return JSONResponse(engine_responses.whole(body, is_aborted=self.behaviour == "stop"))
        message = {"role": "assistant", "content": "Leek.", "refusal": None, "annotations": None}
        text: dict[str, Any] = {"text": "Leek."} if "prompt" in body else {"message": message}
        choice = {"index": 0, **text, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
        beyond = {"service_tier": None, "prompt_token_ids": None, "kv_transfer_params": None}
        return JSONResponse(self._envelope(body, "", [choice]) | {"usage": USAGE} | beyond)

    def _envelope(self, body: dict[str, Any], part: str, choices: list[Any]) -> dict[str, Any]:
        prefix, kind = (
            ("cmpl", "text_completion") if "prompt" in body else ("chatcmpl", f"chat.completion{part}")
        )
        return {"id": f"{prefix}-1", "object": kind, "created": 1, "model": body["model"], "choices": choices}

    async def _half(self) -> AsyncIterator[str]:
        yield '{"id": '
        raise ConnectionError("the engine dies")

    async def _chunks(self, body: dict[str, Any]) -> AsyncIterator[str]:
        try:
            if self.behaviour == "break at once":
                raise ConnectionError("the engine dies")
            count = 10_000 if self.behaviour == "endless" else 3
            for number in range(count):
                text = {"text": f"{number} "} if "prompt" in body else {"delta": {"content": f"{number} "}}
                choice = {"index": 0, **text, "logprobs": None, "finish_reason": None, "token_ids": None}
                yield self._event(self._envelope(body, ".chunk", [choice]))
                self.chunks_sent += 1
                if self.behaviour == "break":
                    raise ConnectionError("the engine dies")
                if self.behaviour.startswith("die"):
                    yield DEATH
                    break
                if self.behaviour == "pause":
                    await asyncio.Event().wait()
                await asyncio.sleep(0.01)
            if self.behaviour == "die slowly":
                await asyncio.Event().wait()
            if body.get("stream_options", {}).get("include_usage"):
                yield self._event(self._envelope(body, ".chunk", []) | {"usage": USAGE})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.disconnected.set()
            raise

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        try:
            if self.behaviour == "break at once":
                raise ConnectionError("the engine dies")
            for event in engine_responses.stream(body, is_aborted=self.behaviour == "stop"):
                yield event
                self.chunks_sent += 1
                if ".delta" not in event:
                    continue
                if self.behaviour == "break":
                    raise ConnectionError("the engine dies")
                if self.behaviour.startswith("die"):
                    yield DEATH + "data: [DONE]\n\n"
                    break
                if self.behaviour == "pause":
                    await asyncio.Event().wait()
            if self.behaviour == "die slowly":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.disconnected.set()
            raise

    def _event(self, chunk: dict[str, Any]) -> str:
        return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"


@contextmanager
def run_engine(stand_in: EngineStandIn, socket: str) -> Iterator[None]:
    """Serves the stand-in on a Unix socket."""
    server = uvicorn.Server(uvicorn.Config(stand_in.app, uds=socket, log_level="critical", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the stand-in starts")
        yield
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join()


@contextmanager
def run_engine_process(socket: str) -> Iterator[subprocess.Popen[bytes]]:
    """Serves a stand-in that answers, in a process of its own."""
    command = [sys.executable, "-m", "tests.support.engine_stand_in", socket]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        wait_until(lambda: listens(socket), "the stand-in starts")
        yield process
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    uvicorn.run(EngineStandIn().app, uds=sys.argv[1], log_level="critical", access_log=False)


ASK: dict[str, Any] = {"model": BASE_MODEL, "messages": [{"role": "user", "content": "Soup?"}]}


def register_engine(database: Database, url: str, **columns: Any) -> str:
    """The row of an engine that does not report itself again, by default for a long time."""
    row = {"base_model": BASE_MODEL, "status": "ready", "heartbeat_at": database_now() + 3600} | columns
    with database.writer() as session:
        engine = Engine(
            url=url,
            api_key=ENGINE_KEY,
            device="cpu",
            version="0",
            started_at=time.time(),
            **row,
        )
        session.add(engine)
        session.flush()
        return engine.id
