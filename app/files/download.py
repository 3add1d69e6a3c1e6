"""Files sent to clients, whole or in the ranges that they ask for."""

from __future__ import annotations

from pathlib import Path

from fastapi.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from app.core.errors import RangeNotSatisfiableError


class Download(FileResponse):
    """A file that is kept, not shown."""

    def __init__(self, path: Path, filename: str) -> None:
        super().__init__(path, media_type="application/octet-stream", filename=filename)

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the file.

        Raises:
            RangeNotSatisfiableError: the request's `Range` is not satisfiable.
        """

        async def send_file(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                raise RangeNotSatisfiableError(int(self.headers["content-length"]))
            await send(message)

        await super().__call__(scope, receive, send_file)
