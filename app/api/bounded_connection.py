"""uvicorn's protocol with bounds: on the time that a client may take, and on the number of clients.

uvicorn waits for ever for the rest of a request's headers or body, and for a client that does not read. The
times are those of Apache's `RequestReadTimeout` (https://httpd.apache.org/docs/2.4/mod/mod_reqtimeout.html)
and of nginx's `send_timeout`: a slow client passes, one that stands still does not.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import sys
import termios
from contextlib import suppress
from typing import Any, cast

from starlette.types import Receive, Scope, Send
from typing_extensions import override
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.api.access_log import write_exchange, write_refusal
from app.api.error_handlers import error_response
from app.api.exchange import Exchange
from app.core.database import new_id
from app.core.errors import ErrorBody, ErrorResponse, UnavailableError
from app.core.scope import HELD_BACK, IS_ENDLESS, REFUSED_WITH, REQUEST_ID

HEADER_SECONDS = 20.0
"""How long a request's headers may take, from the connection or the last answer on."""
WINDOW_SECONDS = 20.0
"""How long a client may be slower than the rate, whether it sends or reads."""
BYTES_PER_SECOND = 500
LOOK_SECONDS = 1.0
MAX_HEADER_BYTES = 64 * 1024
MAX_PIPELINED = 8
"""Requests that a client may send ahead of the answers to earlier ones."""


_log = logging.getLogger("toque.connection")
_log.setLevel(logging.ERROR)  # uvicorn's warnings tell of clients' faults, which the access log has


class BoundedConnection(HttpToolsProtocol):
    """A connection that is closed if its client stands still, or if it idles and others need its place.

    `limit_concurrency` of uvicorn's configuration is the number of connections. At that number the connection
    that has waited longest for a request, or else one whose refusal is held back, gives way to a new one; if
    there is none, the new one is refused.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = _log
        self._most_connections, self.limit_concurrency = config.limit_concurrency, None
        self._idle_since = self._window_began = self.loop.time()
        self._answered: RequestResponseCycle | None = None
        """The request that the app answers now, or has answered last; others may wait behind it."""
        self._header_bytes: int | None = None
        """The bytes of headers that are not complete; None between them."""
        self._is_sending = False
        """Whether the client has more of a body to send."""
        self._bodiless_bytes = 0
        """The bytes that came since the body last grew: its frame, or trailers without end."""
        self._received = self._received_before = self._unread_before = 0
        self._has_drained = False
        self._timer: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(LOOK_SECONDS, self._look)
        if self._most_connections is not None and len(self.connections) > self._most_connections:
            self._make_room()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    @override
    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        if self._header_bytes is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse_headers()
        elif self._is_sending:
            self._bodiless_bytes += len(data)
            if self._bodiless_bytes > len(data) + MAX_HEADER_BYTES:
                self._refuse_headers()

    @override
    def on_message_begin(self) -> None:
        self._header_bytes = 0
        super().on_message_begin()

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        if self._header_bytes is not None:  # else it is a trailer, which nobody reads
            super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        self._header_bytes, self._is_sending, self._bodiless_bytes = None, True, 0
        self._begin_window()
        if len(self.pipeline) >= MAX_PIPELINED:
            self.transport.close()  # what is sent with them is parsed, but not kept
        if not self.transport.is_closing():
            super().on_headers_complete()
            if not self.pipeline:
                self._answered = self.cycle

    @override
    def on_body(self, body: bytes) -> None:
        self._bodiless_bytes = 0
        super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        self._is_sending = False
        super().on_message_complete()

    @override
    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        if self.pipeline:
            self._answered = self.pipeline[-1][0]
        super().on_response_complete()
        if self.pipeline:  # uvicorn would read on, and so take ever more of them
            self.flow.pause_reading()

    @override
    def pause_writing(self) -> None:
        self._begin_window()
        super().pause_writing()

    @override
    def resume_writing(self) -> None:
        self._has_drained = True
        super().resume_writing()

    @override
    def shutdown(self) -> None:
        super().shutdown()
        if not self._idles and IS_ENDLESS in self.cycle.scope:
            self.transport.close()

    @override
    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg, "invalid_http")

    @property
    def _idles(self) -> bool:
        return not self.cycle or self.cycle.response_complete  # there is none before the first request

    @property
    def _is_held_back(self) -> bool:
        return self._answered is not None and HELD_BACK in self._answered.scope

    def _look(self) -> None:
        """Close the connection if its client has stood still for too long."""
        self._timer = self.loop.call_later(LOOK_SECONDS, self._look)
        now = self.loop.time()
        if self._idles and not self.transport.is_closing() and now - self._idle_since > HEADER_SECONDS:
            self._refuse(408, "The request's headers did not arrive in time.", "request_timeout")
        elif now - self._window_began >= WINDOW_SECONDS:
            if self._reads_too_slowly():
                self.transport.abort()
            elif self._sends_too_slowly():
                self._refuse(408, "The request's body did not arrive in time.", "request_timeout")
            self._begin_window()

    def _begin_window(self) -> None:
        self._window_began = self.loop.time()
        self._received_before, self._has_drained = self._received, False
        self._unread_before = self._unread_bytes()

    def _sends_too_slowly(self) -> bool:
        """Whether a body that the service waits for has hardly grown."""
        grown = self._received - self._received_before
        is_awaited = self._is_sending and not self._idles and not self.flow.read_paused
        return is_awaited and grown < BYTES_PER_SECOND * WINDOW_SECONDS

    def _reads_too_slowly(self) -> bool:
        """Whether what the client has to read has hardly shrunk, and nothing could be added to it."""
        is_full = self.flow.write_paused or self.transport.is_closing()
        shrunk = self._unread_before - self._unread_bytes()
        was_waiting = self._unread_before > 0 and is_full and not self._has_drained
        return was_waiting and shrunk < min(BYTES_PER_SECOND * WINDOW_SECONDS, self._unread_before)

    def _unread_bytes(self) -> int:
        """The bytes that the client has not acknowledged, here and in the buffer of the kernel (tcp(7))."""
        queued = bytearray(4)
        with suppress(OSError):  # the connection is closed
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def _make_room(self) -> None:
        others = [
            each
            for each in self.connections
            if isinstance(each, BoundedConnection) and each is not self and not each.transport.is_closing()
        ]
        idle = [each for each in others if each._idles] or [each for each in others if each._is_held_back]
        if idle:
            min(idle, key=lambda each: each._idle_since).transport.close()
        else:
            self.app = _busy

    def _refuse_headers(self) -> None:
        self._refuse(
            431, f"A request has {MAX_HEADER_BYTES:,} bytes of headers at most.", "headers_too_large"
        )

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer in our envelope, unless an answer has begun, and close the connection."""
        if self.transport.is_closing():
            return
        if self._idles or not (self.cycle.response_started or self.pipeline):
            scope = cast("dict[str, Any]", {} if self._idles else self.scope)
            request_id = scope.get(REQUEST_ID) or new_id("req_")
            scope[REFUSED_WITH] = status
            error = ErrorBody(message=message, type="invalid_request_error", code=code)
            content = ErrorResponse(error=error).model_dump_json().encode()
            self.transport.write(
                STATUS_LINE[status]
                + b"content-type: application/json\r\nconnection: close\r\n"
                + b"x-content-type-options: nosniff\r\nx-request-id: %s\r\n" % request_id.encode()
                + b"content-length: %d\r\n\r\n%s" % (len(content), content)
            )
            if self._idles:
                write_refusal(status, request_id, self.client and self.client[0])
        self.transport.close()


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a request on a connection beyond the limit."""
    busy = UnavailableError("The service has too many connections; try again.", code="too_many_connections")
    response = error_response(busy)
    response.headers["connection"] = "close"
    exchange = Exchange(scope, receive, send, new_id("req_"))
    await response(scope, exchange.receive, exchange.send)
    write_exchange(exchange)
