"""A request with its response, measured as their parts pass by."""

from __future__ import annotations

import time
from typing import cast

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from app.core.scope import ARRIVED_AT, REFUSED_WITH, REQUEST_ID

_EVENT_STREAM = b"text/event-stream"


class Exchange:
    """One request and its response. `receive` and `send` take the place of the server's.

    The response gets `x-request-id`, `openai-processing-ms`, and `x-content-type-options`.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope = scope
        self.headers = Headers(scope=scope)
        self.request_id = scope[REQUEST_ID] = request_id
        self.bytes_received = 0
        """Of the body, as far as it was asked for."""
        self.is_received = False
        """Whether the body was received to its end; one that nobody asked for was not."""
        self.bytes_sent = 0
        """Of the response's body."""
        self.is_complete = False
        """Whether the response has its last byte; its client may have left before."""
        self.first_byte_seconds: float | None = None
        """From the request's arrival to the first byte of a stream; None if the response is no stream."""
        self._receive = receive
        self._send = send
        self._status: int | None = None
        self._is_stream = False
        self._began = scope[ARRIVED_AT] = time.perf_counter()

    @property
    def has_started(self) -> bool:
        """Whether the response has a status, which cannot be changed any more."""
        return self._status is not None

    @property
    def status(self) -> int:
        """The status that the client got; 500 if the response never started."""
        return cast("int", self.scope.get(REFUSED_WITH) or self._status or 500)

    @property
    def seconds(self) -> float:
        """The time since the request's arrival."""
        return time.perf_counter() - self._began

    @property
    def route(self) -> str | None:
        """The matched route's path, whose values are few, whatever clients send; None if there is none."""
        return getattr(self.scope.get("route"), "path", None)

    async def receive(self) -> Message:
        """Return the next part of the request."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.bytes_received += len(message.get("body", b""))
            self.is_received = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send the next part of the response."""
        if message["type"] == "http.response.start":
            self._start(message)
        elif message["type"] == "http.response.body":
            content = message.get("body", b"")
            self.bytes_sent += len(content)
            if content and self._is_stream and self.first_byte_seconds is None:
                self.first_byte_seconds = self.seconds
            self.is_complete = not message.get("more_body", False)
        await self._send(message)

    def _start(self, message: Message) -> None:
        self._status = message["status"]
        headers = [*message.get("headers", ())]
        self._is_stream = dict(headers).get(b"content-type", b"").startswith(_EVENT_STREAM)
        headers += [
            (b"x-request-id", self.request_id.encode()),
            (b"openai-processing-ms", b"%d" % round(self.seconds * 1000)),
            (b"x-content-type-options", b"nosniff"),
        ]
        message["headers"] = headers
