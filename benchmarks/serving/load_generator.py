"""Equal requests to one address, all that fit or so many a second; a process of its own.

It sends prepared bytes and parses answers with httptools: a core makes about 20,000 requests a second of it,
so what is measured is what it asks.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
from collections import deque
from typing import Any, cast

import httptools
import msgspec
import uvloop

_END_OF_STREAM = b"data: [DONE]\n\n"


class Load(msgspec.Struct, frozen=True):
    """What to send, and how often."""

    port: int
    body: dict[str, Any]
    api_key: str = ""
    connections: int = 16
    seconds: float = 0.0
    requests: int = 0
    """Number of requests to send, instead of as many as fit in `seconds`."""
    rate: float = 0.0
    """Requests started per second; 0 starts a connection's next request as soon as it has its answer."""

    @property
    def head_and_body(self) -> bytes:
        body = json.dumps(self.body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n"
            f"authorization: Bearer {self.api_key}\r\ncontent-type: application/json\r\n"
            f"accept: */*\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Outcome(msgspec.Struct, frozen=True):
    """The measured result of a load."""

    answers: int
    failures: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Returns the answers per second."""
        return self.answers / self.seconds


def generate(load: Load, core: int) -> Outcome:
    """Runs the load in a child process on a given core."""
    command = ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.serving.load_generator"]
    done = subprocess.run(command, input=msgspec.json.encode(load), stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=Outcome)


class Connection(asyncio.Protocol):
    """A connection that sends one request at a time, and calls `idle` after each."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._asked_at = 0.0
        self._tail = b""
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self) -> None:
        self._tail = b""
        self._asked_at = time.perf_counter()
        self._transport.write(self._generator.request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._tail = (self._tail + body)[-len(_END_OF_STREAM) :]

    def on_message_complete(self) -> None:
        whole = self._tail == _END_OF_STREAM if self._generator.streamed else bool(self._tail)
        right = self._parser.get_status_code() == 200 and whole
        self._generator.answered(self, time.perf_counter() - self._asked_at, right)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._generator.lost()


class Generator:
    """Keeps its connections busy until the load is spent."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.request = load.head_and_body
        self.streamed = bool(load.body.get("stream"))
        self._latencies: list[float] = []
        self._failures = self._asked = 0
        self._spent = False
        self._idle: deque[Connection] = deque()
        self._began = self._last = 0.0
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> Outcome:
        loop = asyncio.get_running_loop()
        for _ in range(self._load.connections):
            _, connection = await loop.create_connection(
                lambda: Connection(self), "127.0.0.1", self._load.port
            )
            self._idle.append(connection)
        gc.disable()
        self._began = time.perf_counter()
        if self._load.rate:
            await self._ask_at_rate()
        else:
            for connection in self._idle:
                self._ask_again(connection)
        await self._ended
        return self._outcome()

    async def _ask_at_rate(self) -> None:
        for number in range(round(self._load.rate * self._load.seconds)):
            due = self._began + number / self._load.rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            assert self._idle, "too few connections for this rate"
            self._asked += 1
            self._idle.popleft().ask()
        self._spent = True

    def answered(self, connection: Connection, seconds: float, right: bool) -> None:
        self._last = time.perf_counter()
        self._latencies.append(seconds)
        self._failures += not right
        if self._load.rate:
            self._idle.append(connection)
        else:
            self._ask_again(connection)
        if self._spent and len(self._latencies) == self._asked and not self._ended.done():
            self._ended.set_result(None)

    def lost(self) -> None:
        if not self._ended.done():
            self._ended.set_exception(ConnectionError("the other side closed a connection"))

    def _ask_again(self, connection: Connection) -> None:
        self._spent = (
            self._asked >= self._load.requests
            if self._load.requests
            else time.perf_counter() - self._began >= self._load.seconds
        )
        if not self._spent:
            self._asked += 1
            connection.ask()

    def _outcome(self) -> Outcome:
        hundredths = statistics.quantiles(self._latencies, n=100)
        return Outcome(
            answers=len(self._latencies) - self._failures,
            failures=self._failures,
            seconds=self._last - self._began,
            p50_ms=hundredths[49] * 1000,
            p99_ms=hundredths[98] * 1000,
        )


def main() -> None:
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)

    async def run() -> Outcome:
        return await Generator(load).run()

    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(run())))


if __name__ == "__main__":
    main()
