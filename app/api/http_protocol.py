"""uvicorn's protocol, made frugal: nothing of a body is read before the application asks for it.

uvicorn reads up to 256 kB at a time and goes on until 64 KiB of the body wait, whoever sends it. Here, a
request that is refused by its headers costs one read, of 60 KiB at most.
"""

from __future__ import annotations

import asyncio
from typing import Any

from typing_extensions import override
from uvicorn.config import Config
from uvicorn.server import ServerState

from app.api.bounded_connection import BoundedConnection

_READ_BYTES = 60 * 1024
_BODY_HEADERS = {b"content-length", b"transfer-encoding"}
_buffer = memoryview(bytearray(_READ_BYTES))
"""One for all connections of an event loop, since what was read is copied before anything else can run."""


class HttpProtocol(asyncio.BufferedProtocol):
    """A connection of uvicorn's httptools protocol, with a buffer of our size."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._http = _ReadsOnDemand(config, server_state, app_state, _loop)
        self.connection_made = self._http.connection_made  # pyright: ignore[reportAttributeAccessIssue]
        self.connection_lost = self._http.connection_lost
        self.pause_writing = self._http.pause_writing
        self.resume_writing = self._http.resume_writing

    @override
    def get_buffer(self, sizehint: int) -> memoryview:
        return _buffer

    @override
    def buffer_updated(self, nbytes: int) -> None:
        self._http.data_received(bytes(_buffer[:nbytes]))


class _ReadsOnDemand(BoundedConnection):
    """Stops reading once the headers are there; `receive` of the application goes on."""

    @override
    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if not _BODY_HEADERS.isdisjoint(name for name, _ in self.headers):
            self.flow.pause_reading()
