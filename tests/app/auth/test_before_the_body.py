"""Whoever has no valid key is refused before a byte of the body is asked for, and cannot go on sending."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import openai
import pytest
from openai import OpenAI

from app.api.http_protocol import HttpProtocol
from tests.support.service import API_KEY, Service

pytestmark = pytest.mark.one_database

PATHS = (
    "/v1/fine_tuning/jobs",
    "/v1/files",
    "/v1/chat/completions",
    "/v1/adapters",
    "/v1/nothing",
    "/health/live",
)
SENT_AT_MOST = 64 * 2**20
READ_AT_MOST = 64 * 1024


@contextmanager
def connection(service: Service) -> Iterator[socket.socket]:
    """A connection whose system buffers are small, so that what is sent is soon what is read."""
    address = urlsplit(service.url)
    with socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        opened.settimeout(30)
        opened.connect((address.hostname, address.port))
        yield opened


def head(path: str, *fields: str) -> bytes:
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", "host: toque", "content-type: application/json", *fields, "", ""]
    ).encode()


def answer(opened: socket.socket) -> bytes:
    """Everything until the other side closes."""
    received = b""
    try:
        while part := opened.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


def test_a_stranger_is_refused_by_the_headers_alone(service: Service) -> None:
    lengths = (f"content-length: {10 * 2**20}", "transfer-encoding: chunked")
    keys = ([], ["authorization: Bearer sk-wrong"], [f"authorization: Bearer {'x' * 10_000}"])
    for path, length, key in itertools.product(PATHS, lengths, keys):
        with connection(service) as opened:
            opened.sendall(head(path, length, *key))
            status, _, rest = answer(opened).lower().partition(b"\r\n")
        assert status.split()[1] == (b"405" if path == "/health/live" else b"401")
        assert b"connection: close" in rest


def test_what_a_stranger_sends_is_not_read(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    update = HttpProtocol.buffer_updated
    monkeypatch.setattr(HttpProtocol, "buffer_updated", lambda self, n: (read.append(n), update(self, n)))
    for path in PATHS:
        read.clear()
        with connection(service) as opened, pytest.raises(ConnectionError):
            opened.sendall(head(path, f"content-length: {SENT_AT_MOST}"))
            for _ in range(SENT_AT_MOST // 2**20):
                opened.sendall(b"{" * 2**20)
        assert sum(read) <= READ_AT_MOST


def test_nobody_is_told_to_go_on_without_a_key(service: Service) -> None:
    for key, expected in ("sk-wrong", b"HTTP/1.1 401"), (API_KEY, b"HTTP/1.1 100"):
        with connection(service) as opened:
            fields = ["content-length: 100", "expect: 100-continue", f"authorization: Bearer {key}"]
            opened.sendall(head("/v1/fine_tuning/jobs", *fields))
            assert opened.recv(1000).startswith(expected)


def test_the_official_client_sees_the_envelope_however_much_it_sends(service: Service) -> None:
    content = "x" * 15_000_000
    with OpenAI(base_url=f"{service.url}/v1", api_key="sk-wrong", max_retries=0) as client:
        for _ in range(5):
            with pytest.raises(openai.AuthenticationError) as refused:
                client.chat.completions.create(model="m", messages=[{"role": "user", "content": content}])
            assert refused.value.code == "invalid_api_key"
            with pytest.raises(openai.AuthenticationError):
                client.files.create(file=content.encode(), purpose="fine-tune")


def test_a_small_body_is_dropped_and_the_connection_kept(service: Service) -> None:
    with service.http("sk-wrong") as http:
        refused = http.post("/v1/fine_tuning/jobs", content=json.dumps({"a": [{}] * 1000}))
    assert refused.status_code == 401
    assert "connection" not in refused.headers
