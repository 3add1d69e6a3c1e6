"""An engine that answers at once, with what it has ready.

    python -m benchmarks.serving.stand_in_engine PORT

It costs so little that a gateway before it is all that is measured. The model `instant` streams its
tokens as fast as they are taken, each in a write of its own; `paced` one every `PACE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, cast

import httptools
import orjson
import uvloop

INSTANT, PACED = "instant", "paced"
PACE_SECONDS = 0.01

_TEXT = "The bowl is rinsed in cold water, never hot, and dried before the paddle goes back on. "
_ANSWER = {
    "id": "chatcmpl-0123456789abcdef",
    "object": "chat.completion",
    "created": 1,
    "model": INSTANT,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": _TEXT * 4},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 128, "completion_tokens": 80, "total_tokens": 208},
}
_CHUNK = {
    "id": "chatcmpl-0123456789abcdef",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": INSTANT,
    "choices": [{"index": 0, "delta": {"content": " water"}, "logprobs": None, "finish_reason": None}],
}


def _answer(content: Any) -> bytes:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _event(data: str) -> bytes:
    event = f"data: {data}\n\n"
    return f"{len(event):x}\r\n{event}\r\n".encode()


_COMPLETION = _answer(_ANSWER)
_MODELS = _answer({"object": "list", "data": [{"id": name, "object": "model"} for name in (INSTANT, PACED)]})
_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_TOKEN = _event(json.dumps(_CHUNK))
_END = _event("[DONE]") + b"0\r\n\r\n"


class StandInEngine(asyncio.Protocol):
    """The HTTP protocol of one connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"GET":
            self._transport.write(_MODELS)
            return
        request = orjson.loads(self._body)
        if request.get("stream"):
            self._transport.write(_STREAM)
            self._stream(request["max_tokens"], request["model"] == PACED)
        else:
            self._transport.write(_COMPLETION)

    def _stream(self, left: int, paced: bool) -> None:
        if self._transport.is_closing():
            return
        if left == 0:
            self._transport.write(_END)
            return
        self._transport.write(_TOKEN)
        if paced:
            self._loop.call_later(PACE_SECONDS, self._stream, left - 1, paced)
        else:
            self._loop.call_soon(self._stream, left - 1, paced)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(StandInEngine, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
