"""Answers of `POST /v1/responses`: OpenAI's `Response`, whole or grown by the events of a stream."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from typing_extensions import override

from app.completions.answers.answer import Answer
from app.completions.answers.response_events import (
    Completed,
    Created,
    EngineResponse,
    Event,
    Growth,
    InProgress,
    ItemAdded,
    ItemDone,
    StreamedLogprob,
    TextDelta,
    TextDone,
)
from app.completions.answers.response_items import Item
from app.completions.vllm_client import RetryableError, broken_off
from app.core.errors import ToqueError
from app.responses.item_ids import item_id

Keep = Callable[[dict[str, Any]], Awaitable[bool]]
"""Stores a response, and returns whether that was possible."""

_wholes = msgspec.json.Decoder(EngineResponse)
_events: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
T = TypeVar("T")


class ResponseAnswer(Answer):
    """The answer to one request.

    It has ids of ours, which name what is stored, and repeats of the request what the client sent. An item
    that the most tokens cut off is `incomplete`, and so is the last event of its stream; engines do not
    tell such items and streams from complete ones.
    """

    def __init__(
        self, response_id: str, input_items: int, repeated: dict[str, Any], keep: Keep | None
    ) -> None:
        super().__init__()
        self._id = response_id
        self._input_items = input_items
        self._repeated = repeated
        self._keep = keep
        self._created_at = int(time.time())
        self._said = EngineResponse(model="", status="in_progress", temperature=1.0, top_p=1.0)
        self._next = 0
        """The next sequence number."""
        self._item_id = ""
        """The item that the stream is at."""
        self._last_item: ItemDone | None = None
        """An item that is complete as far as the engine says, until it is clear what it ended with."""
        self._items: list[Item] = []
        self._logprobs: list[StreamedLogprob] = []
        self._ended: dict[str, Any] | None = None

    @override
    def whole(self, content: bytes) -> bytes:
        self._said = _unbroken(_read(_wholes, content))
        return msgspec.json.encode(self._end(self._said.status, self._said.output))

    @override
    def event(self, data: bytes) -> bytes:
        event = _read(_events, data)
        if isinstance(event, Completed):
            return self._complete(event.response)
        before = self._release("completed")
        if isinstance(event, Created | InProgress):
            self._said = event.response
            return self._write(_type_of(event), response=self._response("in_progress", []))
        if isinstance(event, ItemDone):
            self._last_item = event
            return before
        return before + self._pass(event)

    @override
    def failure(self, error: ToqueError) -> bytes:
        """Returns the event `error`, and `response.failed` with the items that had ended by then."""
        message = error.body.message
        before = self._release("incomplete")  # nobody knows what it ended with
        before += self._write("error", code=error.body.code, message=message, param=None)
        failed = self._end("failed", self._items)
        failed["error"] = {"code": "server_error", "message": message}
        return before + self._write("response.failed", response=failed)

    @override
    async def finish(self, last: bytes) -> bytes:
        keep, self._keep = self._keep, None
        if self._ended is None or keep is None or await keep(self._ended):
            return last
        promised = msgspec.json.encode(self._ended)
        self._ended["store"] = False
        return last.replace(promised, msgspec.json.encode(self._ended))

    def _complete(self, said: EngineResponse) -> bytes:
        self._said = _unbroken(said)
        self.has_ended = True
        before = self._release(said.status)
        ended = self._end(said.status, said.output)
        return before + self._write(f"response.{said.status}", response=ended)

    def _release(self, status: str) -> bytes:
        """Returns the event that the last item has ended, now that it is clear how."""
        if (event := self._last_item) is None:
            return b""
        self._last_item = None
        event.item.status = status
        self._items.append(event.item)
        return self._pass(event)

    def _pass(self, event: Growth) -> bytes:
        if isinstance(event, ItemAdded | ItemDone):
            self._item_id = event.item.id = self._id_of(event.item, event.output_index)
        else:
            event.item_id = self._item_id
        if isinstance(event, ItemAdded):
            self._logprobs = []
        elif isinstance(event, TextDelta):
            self._logprobs += event.logprobs
        elif isinstance(event, TextDone):
            event.logprobs = self._logprobs
        event.sequence_number = self._next_number()
        return _sse(_type_of(event), msgspec.json.encode(event))

    def _write(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._next_number(), **fields}
        return _sse(kind, msgspec.json.encode(event))

    def _next_number(self) -> int:
        self._next += 1
        return self._next - 1

    def _id_of(self, item: Item, output_index: int) -> str:
        return item_id(self._id, _type_of(item), self._input_items + output_index)

    def _end(self, status: str, output: list[Item]) -> dict[str, Any]:
        """Returns the response as it ended, and counts its tokens."""
        for place, item in enumerate(output):
            item.id = self._id_of(item, place)
        if output and status == "incomplete":
            output[-1].status = status
        if usage := self._said.usage:
            self.prompt_tokens, self.completion_tokens = usage.input_tokens, usage.output_tokens
        self._ended = self._response(status, output)
        if status == "completed":
            self._ended["completed_at"] = int(time.time())
        return self._ended

    def _response(self, status: str, output: list[Item]) -> dict[str, Any]:
        said = self._said
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": said.model,
            "output": msgspec.to_builtins(output),
            "temperature": said.temperature,
            "top_p": said.top_p,
            **({} if said.usage is None else {"usage": msgspec.to_builtins(said.usage)}),
            **self._repeated,
        }


def _read(decoder: msgspec.json.Decoder[T], content: bytes) -> T:
    try:
        return decoder.decode(content)
    except msgspec.DecodeError as error:
        raise RetryableError(broken_off()) from error


def _unbroken(said: EngineResponse) -> EngineResponse:
    """Returns what the engine said, unless it aborted the response, as one does that stops."""
    if said.status not in ("completed", "incomplete", "failed"):
        raise RetryableError(broken_off())
    return said


def _type_of(tagged: Struct) -> str:
    return str(tagged.__struct_config__.tag)


def _sse(kind: str, data: bytes) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
