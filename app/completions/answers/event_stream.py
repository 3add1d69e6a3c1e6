"""Forwards server-sent events as they arrive, each in the shape that its answer gives it."""

from __future__ import annotations

from typing import Any

import orjson

from app.completions.answers.answer import Answer
from app.completions.engine_refusals import translate_refusal
from app.completions.vllm_client import RetryableError, broken_off
from app.core.errors import ToqueError

_END = b"\n\n"
_ALIVE = b":\n\n"
"""A comment, which keeps the connection open."""


class EventStream:
    """The stream of one answer. It breaks if the engine fails, or stops before the last event.

    Args:
        answer: shapes the events.
        request: the body that the engine was sent.
    """

    def __init__(self, answer: Answer, request: bytes = b"{}") -> None:
        self._answer = answer
        self._request = request
        self._incomplete = b""
        self._has_begun = False
        self.has_ended = False
        """Whether the client has got the last event, or an error in its place; nothing is sent after it."""
        self.is_broken = False
        """Whether it was an error, so that nothing more of the engine's need be read."""

    def forward(self, received: bytes) -> bytes:
        """Returns the bytes to send on to the client, from every event that is complete by now.

        Raises:
            InvalidRequestError: the engine refused the request, in the stream's first event.
            RetryableError: the engine failed at once, before the client has seen anything of the answer.
        """
        *events, self._incomplete = (self._incomplete + received).split(_END)
        passed = b""
        try:
            for event in events:
                passed += self._shape(event)
        except RetryableError as error:
            if not self._has_begun and not passed:
                self._raise_refusal(events[0])
                raise
            passed += self._end_with(error.error)
        self._has_begun = True
        return passed

    def break_off(self) -> bytes:
        """Returns the event that tells the client that nothing more comes."""
        return self._end_with(broken_off())

    def _shape(self, event: bytes) -> bytes:
        if self.has_ended:
            return b""
        if event.startswith(b":"):
            return _ALIVE
        _, is_data, data = event.partition(b"data: ")
        if not is_data:
            return b""  # nothing that an engine says outside of its events is meant for clients
        shaped = self._answer.event(data)
        self.has_ended = self._answer.has_ended
        return shaped

    def _raise_refusal(self, event: bytes) -> None:
        """Raises the error of ours for an event that refuses the request; does nothing if it is none."""
        data = event.partition(b"data: ")[2]
        try:
            said: Any = orjson.loads(data)["error"]["code"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return
        if isinstance(said, int) and 400 <= said < 500:
            raise translate_refusal(said, data, self._request)

    def _end_with(self, error: ToqueError) -> bytes:
        self.has_ended = self.is_broken = True
        return self._answer.failure(error)
