"""The access log: one line for each request, whatever becomes of it, without keys, bodies and queries."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from pydantic import IPvAnyNetwork, TypeAdapter

from app.api import bounded_connection
from app.auth.key_cache import KeyCache
from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning import service as fine_tuning_service
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.service import API_KEY, BASE_MODEL, Service, run_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database

Lines = Callable[[int], list[dict[str, Any]]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """The lines so far, once there are as many as are asked for."""
    caplog.set_level(logging.INFO, logger="toque.access")

    def read(count: int) -> list[dict[str, Any]]:
        def written() -> list[dict[str, Any]] | None:
            found = [vars(each) for each in caplog.records if each.name == "toque.access"]
            return found if len(found) >= count else None

        found: list[dict[str, Any]] = wait_until(written, f"{count} lines")
        assert len(found) == count, found
        assert API_KEY not in repr(found)
        return found

    return read


def send(service: Service, content: bytes) -> bytes:
    """What a connection answers until it is closed."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        received = b""
        with suppress(ConnectionError):  # what is refused is not read to its end
            connection.sendall(content)
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                received += part
        return received


def test_a_request(http: httpx2.Client, lines: Lines) -> None:
    answer = http.get("/v1/models/nothing?token=secret", headers={"x-request-id": "mine-1"})
    [line] = lines(1)
    assert answer.headers["x-request-id"] == "mine-1"
    assert (line["method"], line["route"], line["path"]) == (
        "GET",
        "/v1/models/{model}",
        "/v1/models/nothing",
    )
    assert (line["status"], line["is_complete"], line["request_id"]) == (404, True, "mine-1")
    assert line["client"] == "127.0.0.1"
    assert line["project_id"].startswith("proj_")
    assert line["key_id"].startswith("key_")
    assert (line["bytes_in"], line["bytes_out"]) == (0, len(answer.content))
    assert line["duration_ms"] > 0
    assert "secret" not in repr(line)
    assert "ttft_ms" not in line


def test_an_answer_and_a_stream(http: httpx2.Client, engine: EngineStandIn, lines: Lines) -> None:
    http.post("/v1/chat/completions", json=ASK)
    http.post("/v1/chat/completions", json=ASK | {"stream": True})
    whole, stream = lines(2)
    assert (whole["model"], stream["model"]) == (BASE_MODEL, BASE_MODEL)
    assert whole["bytes_in"] == len(json.dumps(ASK, separators=(",", ":")))
    assert "ttft_ms" not in whole
    assert 0 < stream["ttft_ms"] <= stream["duration_ms"]
    assert "Soup" not in repr([whole, stream])


def test_a_stream_that_its_caller_cuts(http: httpx2.Client, engine: EngineStandIn, lines: Lines) -> None:
    engine.behaviour = "endless"
    with http.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True}) as answer:
        next(answer.iter_bytes())
    [line] = lines(1)
    assert (line["status"], line["is_complete"]) == (200, False)
    assert line["ttft_ms"] > 0


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n", 401),
        (
            b"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n\r\n",
            401,
        ),
        (b"GET /health/live HTTP/9\r\n\r\n", 400),
        (b"no HTTP at all\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000, 431),
        (
            b"POST /v1/batches HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + API_KEY.encode() + b"\r\n"
            b"content-type: application/json\r\ncontent-length: 90000\r\n\r\n{",
            408,
        ),
    ],
    ids=["no key", "websocket", "version", "no HTTP", "headers", "half a body"],
)
def test_odd_connections(
    service: Service, lines: Lines, content: bytes, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if status == 408:
        for name in ("WINDOW_SECONDS", "LOOK_SECONDS"):
            monkeypatch.setattr(bounded_connection, name, 0.2)
    head, _, _ = send(service, content).partition(b"\r\n\r\n")
    first, *fields = head.decode().lower().split("\r\n")
    [line] = lines(1)
    assert (int(first.split()[1]), line["status"]) == (status, status)
    assert f"x-request-id: {line['request_id']}" in fields
    assert "x-content-type-options: nosniff" in fields


def test_a_connection_beyond_the_limit(settings: Settings, database: Database, lines: Lines) -> None:
    request = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    with run_service(settings.model_copy(update={"max_connections": 1})) as service:
        host, _, port = service.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as first:
            first.sendall(b"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ")
            first.sendall(API_KEY.encode() + b"\r\ncontent-type: multipart/form-data; boundary=b\r\n")
            first.sendall(b"content-length: 10000\r\nexpect: 100-continue\r\n\r\n")
            assert first.recv(100).startswith(b"HTTP/1.1 100")  # it does not wait for a request any more
            answer = send(service, request)
            assert b"503" in answer.splitlines()[0]
            assert [line["status"] for line in lines(1)] == [503]


@pytest.mark.parametrize("path", ["/v1/fine_tuning/jobs", "/v1/files"])
def test_an_error_that_nobody_expected(
    http: httpx2.Client,
    lines: Lines,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(fine_tuning_service, "list_jobs", fail)
    monkeypatch.setattr("app.files.service.list_files", fail)
    answer = http.get(path)
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (500, "nosniff")
    [line] = lines(1)
    assert (line["status"], line["request_id"]) == (500, answer.headers["x-request-id"])
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == [
        "unexpected error"
    ]


def test_an_error_before_any_route(
    http: httpx2.Client, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(KeyCache, "authenticate", fail)
    answer = http.get("/v1/files")
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (500, "nosniff")
    assert [line["request_id"] for line in lines(1)] == [answer.headers["x-request-id"]]


@pytest.mark.parametrize("made_up", ["a b", 'x","status":"200', "x" * 129, "\x1b[2J", "é", "x\ty"])
def test_a_request_id_that_could_be_mistaken_for_more(
    http: httpx2.Client, lines: Lines, made_up: str
) -> None:
    answer = http.get("/health/live", headers={"x-request-id": made_up.encode("latin-1")})
    [line] = lines(1)
    assert line["request_id"] == answer.headers["x-request-id"] != made_up
    assert line["request_id"].startswith("req_")


def test_a_path_that_could_be_mistaken_for_a_line(http: httpx2.Client, lines: Lines) -> None:
    http.get("/%0a%1b[2Jx%C2%9B/" + "y" * 4000)
    [line] = lines(1)
    assert line["path"].startswith("/%0A%1B%5B2Jx%C2%9B/yyy")
    assert len(line["path"]) < 600


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        ([], "203.0.113.9", "127.0.0.1"),
        (["127.0.0.0/8"], "203.0.113.9", "203.0.113.9"),
        (["127.0.0.0/8"], "198.51.100.7, 203.0.113.9", "203.0.113.9"),
        (["127.0.0.0/8", "203.0.113.0/24"], "198.51.100.7, 203.0.113.9", "198.51.100.7"),
        (["127.0.0.0/8"], "2001:DB8::1", "2001:db8::1"),
        (["127.0.0.0/8"], "203.0.113.9, <script>", "127.0.0.1"),
        (["127.0.0.0/8"], "", "127.0.0.1"),
    ],
)
def test_the_address_behind_a_proxy(
    settings: Settings, database: Database, lines: Lines, trusted: list[str], forwarded: str, client: str
) -> None:
    networks = TypeAdapter(list[IPvAnyNetwork]).validate_python(trusted)
    with run_service(settings.model_copy(update={"trusted_proxies": networks})) as service:
        with service.http() as http:
            http.get("/health/live", headers={"x-forwarded-for": forwarded})
        assert lines(1)[0]["client"] == client


SAY = """
import logging, warnings
from app.core.logs import log_with, set_up_logging
set_up_logging("worker", {form!r})
log_with(request_id="req_1")
logging.getLogger("toque.x").warning("one\\n%s", "two\\x1b[2J", extra={{"model": "\\ud800"}})
logging.getLogger("uvicorn.error").info("three", extra={{"color_message": "\x1b[36mthree"}})
warnings.warn("four", stacklevel=1)
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("toque.x").exception("five")
"""


def say(form: str) -> list[str]:
    command = [sys.executable, "-c", SAY.format(form=form)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_lines_are_json_where_there_is_no_terminal() -> None:
    one, three, four, five = map(json.loads, say("auto"))
    assert one["process"] == "worker"
    assert one["request_id"] == "req_1"
    assert "two" in one["event"]
    assert (three["event"], three["level"], three["logger"]) == ("three", "info", "uvicorn.error")
    assert "color_message" not in three
    assert "four" in four["event"]
    assert "ZeroDivisionError" in five["exception"]
    assert three["time"].endswith("Z")


def test_lines_are_text_for_people() -> None:
    first, second, *rest = say("console")
    assert "\x1b" not in first
    assert "one\\ntwo" in first
    assert "three" in second
    assert "ZeroDivisionError: division by zero" in rest
