"""A proxy as one writes it in ten minutes: `python -m benchmarks.serving.naive_proxy PORT UPSTREAM`."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse


def naive_proxy(upstream: str) -> FastAPI:
    client = httpx.AsyncClient(base_url=upstream, timeout=60)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await client.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/chat/completions")
    async def create_chat_completion(request: Request) -> Any:
        body = await request.json()
        if body.get("stream"):
            return StreamingResponse(stream(body), media_type="text/event-stream")
        answer = await client.post("/v1/chat/completions", json=body)
        return answer.json()

    async def stream(body: Any) -> AsyncGenerator[bytes]:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for chunk in answer.aiter_bytes():
                yield chunk

    return app


if __name__ == "__main__":
    uvicorn.run(naive_proxy(sys.argv[2]), port=int(sys.argv[1]), log_level="warning")
