"""Files sent to clients, whole or in the ranges that they ask for."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from fastapi.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from app.core.errors import RangeNotSatisfiableError
from app.core.threads import entered_in_thread


class Download(FileResponse):
    """A file that is kept, not shown."""

    def __init__(self, content: AbstractContextManager[Path], filename: str, sha256: str) -> None:
        """`content` has the file on this machine while it is entered."""
        headers = {"etag": f'"{sha256}"'}
        super().__init__("", headers=headers, media_type="application/octet-stream", filename=filename)
        self._content = content

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the file.

        Raises:
            RangeNotSatisfiableError: the request's `Range` is not satisfiable.
            UnavailableError: the file cannot be read now.
        """

        async def send_file(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                raise RangeNotSatisfiableError(int(self.headers["content-length"]))
            await send(message)

        async with entered_in_thread(self._content) as path:
            self.path = path
            await super().__call__(scope, receive, send_file)
