"""A stand-in engine for faults that a real one does not show on request; real answers are in end_to_end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.conftest import wait_until

ENGINE_KEY = "engine-key"


class EngineStandIn:
    """Answers by the request's `user`-visible model name and remembers what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.behaviour = "answer"
        self.chunks_sent = 0
        self.disconnected = threading.Event()
        self.app = Starlette(routes=[Route("/v1/{path:path}", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {ENGINE_KEY}"
        body = await request.json()
        self.bodies.append(body)
        if self.behaviour == "refuse":
            error = {
                "message": "This model's maximum context length is 2048 tokens.",
                "type": "BadRequestError",
                "code": 400,
            }
            return JSONResponse({"error": error}, 400)
        if self.behaviour == "unknown":
            return JSONResponse({"error": {"message": "The model does not exist.", "code": 404}}, 404)
        if self.behaviour == "fail":
            return Response("Internal Server Error: /secret/path.py line 3", 500)
        if body.get("stream"):
            return StreamingResponse(self._chunks(body["model"]), media_type="text/event-stream")
        message = {"role": "assistant", "content": "Leek."}
        choice = {"index": 0, "message": message, "text": "Leek.", "finish_reason": "stop"}
        return JSONResponse(
            {
                "id": "c",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [choice],
            }
        )

    async def _chunks(self, model: str):
        try:
            count = 10_000 if self.behaviour == "endless" else 3
            for number in range(count):
                delta = {"index": 0, "delta": {"content": f"{number} "}, "finish_reason": None}
                chunk = {
                    "id": "c",
                    "object": "chat.completion.chunk",
                    "created": 1,
                    "model": model,
                    "choices": [delta],
                }
                yield f"data: {json.dumps(chunk)}\n\n"
                self.chunks_sent += 1
                if self.behaviour == "break":
                    raise ConnectionError("the engine dies")
                await asyncio.sleep(0.01)
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.disconnected.set()
            raise


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
