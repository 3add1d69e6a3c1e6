"""Clients that stand still are not waited for, and one client's connections do not keep out another's."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from app.api import bounded_connection
from app.api.bounded_connection import BoundedConnection
from app.api.refusal_pace import RefusalPace
from app.core.database import Database
from app.core.settings import Settings
from tests.app.api.conftest import Pace
from tests.support.service import API_KEY, Service, run_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database
AUTHORIZED = f"host: x\r\nauthorization: Bearer {API_KEY}\r\n".encode()


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has clients that stand still waited for less long, from now on."""

    def hurry() -> None:
        monkeypatch.setattr(bounded_connection, "HEADER_SECONDS", 1.0)
        monkeypatch.setattr(bounded_connection, "WINDOW_SECONDS", 1.0)

    monkeypatch.setattr(bounded_connection, "LOOK_SECONDS", 0.1)
    return hurry


class Clock:
    """The time of connections, which passes when a test says so, however long anything takes."""

    def __init__(self) -> None:
        self.connections: list[BoundedConnection] = []
        self._now = 0.0
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self._now

    def call_later(self, seconds: float, function: Callable[..., None], *arguments: Any) -> Any:
        timer = self._now + seconds, lambda: function(*arguments)
        self._timers.append(timer)
        return SimpleNamespace(cancel=lambda: timer in self._timers and self._timers.remove(timer))

    def pass_by(self, seconds: float) -> None:
        """Let time pass; returns when what was due has happened."""
        passed = Future[None]()

        def pass_by() -> None:
            self._now += seconds
            for timer in [timer for timer in self._timers if timer[0] <= self._now]:
                self._timers.remove(timer)
                timer[1]()
            passed.set_result(None)

        self.connections[0].loop.call_soon_threadsafe(pass_by)
        passed.result()


class _ClockedLoop:
    """The event loop, with the clock's time."""

    def __init__(self, clock: Clock) -> None:
        self._loop = asyncio.get_running_loop()
        self.time, self.call_later = clock.time, clock.call_later

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, connect = Clock(), BoundedConnection.__init__

    def connect_by_the_clock(self: BoundedConnection, *arguments: Any) -> None:
        connect(self, *arguments[:3], _ClockedLoop(clock))  # pyright: ignore[reportArgumentType]
        clock.connections.append(self)

    monkeypatch.setattr(BoundedConnection, "__init__", connect_by_the_clock)
    return clock


@pytest.fixture
def connect(service: Service) -> Iterator[Callable[[], socket.socket]]:
    host, _, port = service.url.removeprefix("http://").partition(":")
    with ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection((host, int(port)), timeout=20))


def answer(connection: socket.socket) -> tuple[int, str]:
    """The status and the code of an answer, read until the connection is closed."""
    content = b""
    with suppress(ConnectionResetError):  # a byte came when it was closed already
        while chunk := connection.recv(2**16):
            content += chunk
    head, _, body = content.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def drip(connection: socket.socket) -> None:
    """Send a byte every now and then, until the connection is closed."""
    connection.settimeout(0.2)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            connection.send(b"x")
            connection.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            continue
        except ConnectionError:
            pass  # closed, with an answer that came before
        connection.settimeout(20)
        return
    pytest.fail("the connection stays open")


def test_headers_that_do_not_end(connect: Callable[[], socket.socket], hurry: Callable[[], None]) -> None:
    hurry()
    silent, halfway, dripping = connect(), connect(), connect()
    halfway.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
    dripping.send(b"GET /health/live HTTP/1.1\r\nx: ")
    drip(dripping)
    for each in (dripping, silent, halfway):
        assert answer(each) == (408, "request_timeout")


def test_headers_that_do_not_end_after_an_answer(
    connect: Callable[[], socket.socket], hurry: Callable[[], None]
) -> None:
    connection = connect()
    connection.send(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b"200 OK" in connection.recv(2**16)
    hurry()
    connection.send(b"GET /health/live HTTP/1.1\r\nx: ")
    drip(connection)
    assert answer(connection) == (408, "request_timeout")


def test_headers_without_end(connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    with suppress(ConnectionError):  # it is refused before all is sent
        connection.sendall(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000)
    assert answer(connection) == (431, "headers_too_large")


def test_trailers_without_end(connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    head = b"POST /v1/chat/completions HTTP/1.1\r\n%stransfer-encoding: chunked\r\n\r\n" % AUTHORIZED
    with suppress(ConnectionError):  # it is refused before all is sent
        connection.sendall(head + b"1\r\n{\r\n0\r\n" + b"x: y\r\n" * 30_000)
    assert answer(connection) == (431, "headers_too_large")


def test_requests_ahead_of_their_answers_are_few(connect: Callable[[], socket.socket]) -> None:
    request = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    few, many = connect(), connect()
    few.sendall(request * 5)
    content = b""
    while content.count(b"200 OK") < 5 and (chunk := few.recv(2**16)):
        content += chunk
    assert content.count(b"200 OK") == 5
    content = b""
    with suppress(ConnectionError):
        many.sendall(request * 20_000)
        while chunk := many.recv(2**16):
            content += chunk
    assert content.count(b"200 OK") <= bounded_connection.MAX_PIPELINED + 1


def test_what_is_no_http(connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    connection.send(b"\x16\x03\x01\r\n\r\n")
    assert answer(connection) == (400, "invalid_http")


@pytest.mark.parametrize("path", ["files", "fine_tuning/jobs"])
def test_a_body_that_stands_still(
    path: str, connect: Callable[[], socket.socket], hurry: Callable[[], None]
) -> None:
    hurry()
    connection = connect()
    kind = b"multipart/form-data; boundary=b" if path == "files" else b"application/json"
    connection.send(
        b"POST /v1/%s HTTP/1.1\r\n%scontent-type: %s\r\ncontent-length: 1000000\r\n\r\n--b\r\n"
        % (path.encode(), AUTHORIZED, kind)
    )
    drip(connection)
    assert answer(connection) == (408, "request_timeout")


def test_a_slow_upload_arrives(connect: Callable[[], socket.socket], clock: Clock) -> None:
    body = (
        b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n%s\r\n--b--\r\n'
        % (b"x" * 60_000)
    )
    head = (
        b"POST /v1/files HTTP/1.1\r\n%sconnection: close\r\ncontent-type: multipart/form-data; boundary=b\r\n"
        b"content-length: %d\r\n\r\n" % (AUTHORIZED, len(body))
    )
    connection = connect()
    connection.send(head)
    for start in range(0, len(body), 1000):
        connection.send(body[start : start + 1000])
        sent = len(head) + len(body[: start + 1000])
        wait_until(
            lambda sent=sent: any(each._received == sent for each in clock.connections), "it is received"
        )
        clock.pass_by(1.0)  # twice the rate, for three times as long as the window
    content = b""
    while chunk := connection.recv(2**16):
        content += chunk
    assert b"200 OK" in content
    assert b'"object":"file"' in content


def test_a_client_that_does_not_read(
    service: Service,
    connect: Callable[[], socket.socket],
    hurry: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given_up: list[int] = []
    lose = BoundedConnection.connection_lost

    def connection_lost(self: BoundedConnection, exc: Exception | None) -> None:
        assert self.client is not None
        given_up.append(self.client[1])
        lose(self, exc)

    monkeypatch.setattr(BoundedConnection, "connection_lost", connection_lost)
    with service.client() as client:
        file = client.files.create(file=("x", b"x" * 2**25), purpose="batch")
    connection = connect()
    connection.send(b"GET /v1/files/%s/content HTTP/1.1\r\n%s\r\n" % (file.id.encode(), AUTHORIZED))
    assert connection.recv(1, socket.MSG_PEEK)
    hurry()
    wait_until(lambda: connection.getsockname()[1] in given_up, "the service waits no more")
    received = 0
    with suppress(ConnectionResetError):
        while chunk := connection.recv(2**20):
            received += len(chunk)
    assert 0 < received < 2**25


def test_a_slow_reader_is_served(service: Service, clock: Clock) -> None:
    size = 2**23
    with service.client() as client:
        file = client.files.create(file=("x", b"x" * size), purpose="batch")
    host, _, port = service.url.removeprefix("http://").partition(":")
    with socket.socket() as connection:
        connection.settimeout(20)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        connection.connect((host, int(port)))
        request = b"GET /v1/files/%s/content HTTP/1.1\r\nconnection: close\r\n%s\r\n"
        connection.send(request % (file.id.encode(), AUTHORIZED))
        received = 0
        for _ in range(60):  # three times as long as the window
            received += len(connection.recv(2**14))
            clock.pass_by(1.0)  # the kernel takes nothing more until a third of its buffer is free
        while chunk := connection.recv(2**16):
            received += len(chunk)
    assert received > size


def test_half_sent_requests_give_way(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_connection, "HEADER_SECONDS", 600.0)
    with run_service(settings.model_copy(update={"max_connections": 20})) as service, ExitStack() as stack:
        host, _, port = service.url.removeprefix("http://").partition(":")
        halves = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(60)
        ]
        for half in halves:
            half.send(b"GET /v1/models HTTP/1.1\r\n")
        with service.client() as client:
            assert client.models.list().data
        with suppress(ConnectionResetError):  # what it has sent was not read
            assert halves[0].recv(1) == b""


def test_refusals_that_are_held_back_give_way(
    settings: Settings, database: Database, pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has no key cannot take every place by being refused."""
    monkeypatch.setattr(RefusalPace, "_delay", lambda _self, _caller: 3.0)
    limits = {"max_connections": 10, "refusals_per_second": 1.0}
    with run_service(settings.model_copy(update=limits)) as service, pace.held(), ExitStack() as stack:
        host, _, port = service.url.removeprefix("http://").partition(":")
        for _ in range(10):
            stranger = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            stranger.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" * 2)
        wait_until(lambda: len(pace.waits) == 10, "all are held back")
        with service.client() as client:
            assert client.models.list().data
