"""Watches a service in tests: every response, as it was sent, is held against OpenAI's specification."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.specification.shapes import CHUNKS, ERROR, SHAPES

_OURS = {"fine_tuning.job.preflight"}
"""Objects that OpenAI does not have, but that one of its routes may answer with here."""
_MOST_EVENTS = 200
"""Of one stream, the first of its events that are looked at."""


def _pattern(route: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"[^/]+", route))


_ROUTES = {route: _pattern(route) for route in SHAPES}


class SpecificationWatch:
    """Wraps the service. `problems` says where responses were not as the specification has them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.problems: list[str] = []
        self.seen: set[str] = set()
        """Routes, such as `GET /v1/files`, that answered with success."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message = {}
        parts: list[bytes] = []

        async def watch(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    self._check(scope, start, b"".join(parts))
            await send(message)

        await self._app(scope, receive, watch)

    def _check(self, scope: Scope, start: Message, content: bytes) -> None:
        status: int = start["status"]
        called = f"{scope['method']} {scope['path']}"
        headers = {bytes(name).lower(): bytes(value) for name, value in start["headers"]}
        content_type = headers.get(b"content-type", b"").decode()
        if status >= 400 and content and scope["path"].startswith("/v1/"):
            self._hold(called, ERROR, json.loads(content))
        if status >= 300:
            return
        route = next((route for route, pattern in _ROUTES.items() if pattern.fullmatch(called)), None)
        if route is None:
            return
        self.seen.add(route)
        if content_type.startswith("text/event-stream"):
            for event in content.split(b"\n\n")[:_MOST_EVENTS]:
                _, _, data = event.partition(b"data: ")
                if data and data != b"[DONE]":
                    chunk = json.loads(data)
                    self._hold(called, ERROR if chunk.keys() == {"error"} else CHUNKS[route], chunk)
            return
        value = json.loads(content)
        if not (isinstance(value, dict) and value.get("object") in _OURS):
            self._hold(called, SHAPES[route], value)

    def _hold(self, called: str, shape: Any, value: Any) -> None:
        for error in shape.iter_errors(value):
            where = "/".join(map(str, error.absolute_path))
            self.problems.append(f"{called}: {where}: {error.message[:300]}")
