"""Blocks all of vLLM's routes but a few, since vLLM's API key does not protect every route."""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

_ROUTES = frozenset({"/health", "/v1/completions", "/v1/chat/completions", "/v1/responses"})
_KEYED = frozenset({"/tokenize", "/metrics", "/toque/load", "/sleep", "/wake_up"})
"""Routes for which vLLM itself requires no key, and we do."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Allowlist:
    """ASGI middleware for vLLM's --middleware option."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes an allowed request on, and answers 404 to any other."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and _is_allowed(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close"})


def _is_allowed(scope: Scope) -> bool:
    return scope["path"] in _ROUTES or (scope["path"] in _KEYED and _has_key(scope))


def _has_key(scope: Scope) -> bool:
    key = os.environ.get("VLLM_API_KEY", "")
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    return key != "" and secrets.compare_digest(given, f"Bearer {key}".encode())
