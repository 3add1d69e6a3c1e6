"""What every answer of the gateway has, whatever its route."""

from __future__ import annotations

from abc import ABC, abstractmethod

import orjson

from app.core.errors import ToqueError


class Answer(ABC):
    """The answer to one request: `whole`, or with `stream` one `event` after the other."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        """As far as the engine has said; 0 until then."""
        self.completion_tokens = 0
        self.has_ended = False
        """Whether the engine has sent the stream's last event."""

    @abstractmethod
    def whole(self, content: bytes) -> bytes:
        """Returns the body of the response that an engine's whole answer becomes.

        Raises:
            RetryableError: the engine broke off its answer, or it cannot be read.
        """

    @abstractmethod
    def event(self, data: bytes) -> bytes:
        """Returns the server-sent event, with its empty line, that the data of an engine's event becomes;
        nothing if the client is to see none.

        Raises:
            RetryableError: the engine broke off its answer, or it cannot be read.
        """

    def failure(self, error: ToqueError) -> bytes:
        """Returns the last event of a stream that the engine broke off."""
        return b"data: " + orjson.dumps({"error": error.body.model_dump()}) + b"\n\n"

    async def finish(self, last: bytes) -> bytes:
        """Returns the last bytes for the client, once everything that they promise is done."""
        return last
