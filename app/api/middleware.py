"""Gives every request an id, a limit on its body, an answer if it fails, and a line in the access log.

Pure ASGI: Starlette's `BaseHTTPMiddleware` costs half the throughput and breaks streaming.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import IPvAnyNetwork
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access_log import write_exchange
from app.api.client_address import client_address
from app.api.error_handlers import error_response, respond_to
from app.api.exchange import Exchange
from app.api.metrics import Metrics
from app.api.request_span import request_span
from app.completions.schemas import ChatCompletionRequest, CompletionRequest, ResponseRequest
from app.completions.schemas.request_body import MOST_VALUES, too_many_values
from app.core.database import new_id
from app.core.errors import TooLargeError
from app.core.logs import log_with

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
    """Stands in front of everything: every request ends here, and with it its line in the access log.

    It closes the connection if an answer comes before the body was read and much of it may follow: to those
    who have no key, no permission, or nothing left of what they may ask, and where the body is refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        metrics: Metrics,
        trusted_proxies: Sequence[IPvAnyNetwork] = (),
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics
        self._trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _CLIENT_REQUEST_ID.fullmatch(request_id):
            request_id = new_id("req_")
        if self._trusted_proxies and scope["client"]:
            scope["client"] = (client_address(scope["client"][0], headers, self._trusted_proxies), 0)
        log_with(request_id=request_id)
        exchange = Exchange(scope, receive, send, request_id)
        with request_span(exchange):
            await self._observe(exchange)

    async def _observe(self, exchange: Exchange) -> None:
        self._metrics.begin()
        try:
            await self._serve(exchange)
        except Exception as error:
            if exchange.has_started:
                raise  # the server logs it and closes the connection
            answer = await respond_to(Request(exchange.scope), error)
            await answer(exchange.scope, exchange.receive, exchange.send)
        finally:
            self._metrics.end(exchange)
            write_exchange(exchange)

    async def _serve(self, exchange: Exchange) -> None:
        scope, headers = exchange.scope, exchange.headers
        bytes_limit = self._max_body_bytes
        values_limit = MOST_VALUES if scope["path"] in _COMPLETIONS else _MOST_VALUES

        async def send(message: Message) -> None:
            is_early = message["type"] == "http.response.start" and not exchange.is_received
            if is_early and _may_go_on(headers):
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await exchange.send(message)

        if _UPLOADS.fullmatch(scope["path"]):
            await self._app(scope, exchange.receive, send)
        elif _declared_length(headers) > bytes_limit:
            await error_response(_too_large(bytes_limit))(scope, exchange.receive, send)
        else:
            await self._app(scope, _limited(exchange.receive, bytes_limit, values_limit), send)


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
