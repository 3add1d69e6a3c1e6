"""Gives every request an id, a time, a limit on its body and a place in the metrics.

Pure ASGI: Starlette's `BaseHTTPMiddleware` costs half the throughput and breaks streaming.
"""

from __future__ import annotations

import re
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.error_handlers import error_response
from app.api.metrics import Metrics
from app.completions.schemas import ChatCompletionRequest, CompletionRequest, ResponseRequest
from app.completions.schemas.request_body import MOST_VALUES, too_many_values
from app.core.database import new_id
from app.core.errors import TooLargeError
from app.core.scope import ARRIVED_AT, CALLER

_UPLOADS = re.compile(r"/v1/(files|adapters|uploads/[^/]+/parts)")
"""The paths of uploads, whose bodies have limits of their own."""
_COMPLETIONS = frozenset(each.path for each in (ChatCompletionRequest, CompletionRequest, ResponseRequest))
"""The routes that take conversations and lists of tokens."""
_MOST_VALUES = 2**15
"""In a body of any other route, by its commas. To report what is wrong with them takes some microseconds for
each, in which every other request waits."""
_MOST_DROPPED = 48 * 1024
"""The most bytes of a refused request's body that are read and dropped, to keep the connection."""
_CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class RequestMiddleware:
    """Adds `x-request-id` and `openai-processing-ms`, and refuses bodies over the limits.

    It closes the connection of those who may not go on sending: whoever has no key, no permission, or nothing
    left of what they may ask.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, metrics: Metrics) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = scope[ARRIVED_AT] = time.perf_counter()
        status = 500
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _CLIENT_REQUEST_ID.fullmatch(request_id):
            request_id = new_id("req_")

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                elapsed_ms = round((time.perf_counter() - started) * 1000)
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"openai-processing-ms", b"%d" % elapsed_ms),
                    (b"x-content-type-options", b"nosniff"),
                ]
                if (status in (403, 429) or CALLER not in scope) and _may_go_on(headers):
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        bytes_limit = self._max_body_bytes
        values_limit = MOST_VALUES if scope["path"] in _COMPLETIONS else _MOST_VALUES
        try:
            if _UPLOADS.fullmatch(scope["path"]):
                await self._app(scope, receive, send_with_headers)
            elif _declared_length(headers) > bytes_limit:
                await error_response(_too_large(bytes_limit))(scope, receive, send_with_headers)
            else:
                await self._app(scope, _limited(receive, bytes_limit, values_limit), send_with_headers)
        finally:
            # The matched route, never the raw path: its values are few, whatever clients send.
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.observe_request(scope["method"], route, status, time.perf_counter() - started)


def _limited(receive: Receive, bytes_limit: int, values_limit: int) -> Receive:
    """Return a `receive` that refuses a body as soon as it has too many bytes or too many values.

    So no body is parsed, or even read to its end, that would take long to parse.
    """
    received = values = 0

    async def limited() -> Message:
        nonlocal received, values
        message = await receive()
        if message["type"] == "http.request":
            content = message.get("body", b"")
            received += len(content)
            values += content.count(b",")
            if received > bytes_limit:
                raise _too_large(bytes_limit)
            if values > values_limit:
                raise too_many_values(values_limit)
        return message

    return limited


def _declared_length(headers: Headers) -> int:
    value = headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else 0


def _may_go_on(headers: Headers) -> bool:
    """Whether so much of the body may follow that it must not be read, or the client may leave it out."""
    return _declared_length(headers) > _MOST_DROPPED or "transfer-encoding" in headers or "expect" in headers


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"The body is larger than {limit:,} bytes.", code="body_too_large")
