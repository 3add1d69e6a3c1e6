"""Stands in for vLLM on a TCP address: `python -m tests.cluster.stand_in_vllm HOST:PORT`.

An answer takes a second, and `/metrics` says truly how many are being given.
"""

from __future__ import annotations

import asyncio
import os
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

ANSWER_SECONDS = 1.0
running = 0


async def health(_: Request) -> Response:
    return Response()


async def metrics(_: Request) -> Response:
    return Response(f'vllm:num_requests_running{{engine="0"}} {running}.0\n', media_type="text/plain")


async def answer(request: Request) -> Response:
    global running  # noqa: PLW0603 - one process is one engine
    if request.headers["authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
        return JSONResponse({"error": "Unauthorized"}, 401)
    body = await request.json()
    running += 1
    try:
        await asyncio.sleep(0 if body.get("max_tokens") == 1 else ANSWER_SECONDS)
    finally:
        running -= 1
    message = {"role": "assistant", "content": "Leek.", "refusal": None}
    text = {"text": "Leek."} if "prompt" in body else {"message": message}
    kind = "text_completion" if "prompt" in body else "chat.completion"
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    choice = {"index": 0, **text, "logprobs": None, "finish_reason": "stop"}
    return JSONResponse(
        {
            "id": "cmpl-1",
            "object": kind,
            "created": 1,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }
    )


app = Starlette(
    routes=[
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/v1/{path:path}", answer, methods=["POST"]),
    ]
)

if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    uvicorn.run(app, host=host, port=int(port), log_level="critical", access_log=False)
