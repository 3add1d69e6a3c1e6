"""A webhook endpoint over real HTTP, which remembers what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from openai import OpenAI
from openai.types.webhooks import UnwrapWebhookEvent


@dataclass(frozen=True)
class Received:
    """One request."""

    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def number(self) -> int:
        """The number that a test has given the event."""
        return self.event["data"]["number"]

    def unwrap(self, secret: str) -> UnwrapWebhookEvent:
        """Verify it as OpenAI's own client does."""
        return OpenAI(api_key="none").webhooks.unwrap(self.body, self.headers, secret=secret)


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Receiver:
    """`answer` says how to answer a request, and may take its time."""

    url: str = ""
    answer: Callable[[Received], int | Answer] = lambda _: 200
    received: list[Received] = field(default_factory=list)

    @property
    def numbers(self) -> list[int]:
        return [each.number for each in self.received]


@contextmanager
def run_receiver() -> Iterator[Receiver]:
    """Serves an endpoint until the block ends."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            request = Received({name.lower(): value for name, value in self.headers.items()}, body)
            receiver.received.append(request)
            answer = receiver.answer(request)
            status, headers, content = (answer, {}, b"") if isinstance(answer, int) else answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that has left is none."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
        yield receiver
        server.shutdown()
        thread.join()
