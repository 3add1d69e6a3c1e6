"""External endpoints: asked only where the operator allows it, and their keys shown to nobody."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from sqlalchemy import text

from app.database import Database
from app.settings import Settings
from tests.app.comparisons.cook import create, ended, get, lines, number_asked, reference, upload
from tests.conftest import run_service

SECRET = "sk-elsewhere-very-secret"


class Elsewhere:
    """Another service: busy at first, and refuses one question."""

    def __init__(self) -> None:
        self.keys: list[str | None] = []
        self.bodies: list[dict[str, Any]] = []

    def answer(self, key: str | None, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.keys.append(key)
        self.bodies.append(body)
        number = number_asked(body)
        if len(self.bodies) == 1:
            return 429, {"error": {"message": "busy"}}
        if number == 1:
            return 400, {"error": {"message": "I will not."}}
        message = {"role": "assistant", "content": reference(number)}
        return 200, {"choices": [{"message": message}], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


@pytest.fixture
def elsewhere() -> Iterator[tuple[Elsewhere, str]]:
    service = Elsewhere()

    class Completions(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert self.path == "/v1/chat/completions"
            status, answer = service.answer(self.headers.get("authorization"), body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Completions) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield service, f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_an_external_candidate(
    settings: Settings,
    database: Database,
    elsewhere: tuple[Elsewhere, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked, base_url = elsewhere
    allowed = settings.model_copy(update={"external_endpoints": [base_url]})
    candidate = {"type": "external", "base_url": f"{base_url}/", "api_key": SECRET, "model": "big-one"}
    with run_service(allowed) as service, service.client() as client:
        held_out = upload(client, lines(range(4)))
        created = create(client, file=held_out, candidates=[candidate], concurrency=1)
        done = ended(client, created["id"])
        items = get(client, created["id"], "/items")
        refused = candidate | {"base_url": "http://169.254.169.254/v1"}
        with pytest.raises(openai.BadRequestError) as caught:
            create(client, file=held_out, candidates=[refused])
    assert (caught.value.code, caught.value.param) == ("endpoint_not_allowed", "candidates[0].base_url")
    [candidate_result] = done["candidates"]
    assert (candidate_result["type"], candidate_result["name"]) == ("external", "big-one")
    assert (candidate_result["score"], candidate_result["failures"]) == (0.75, 1)
    assert candidate_result["tokens"]["input"] == 21
    assert "I will not." in items["data"][1]["answers"][0]["error"]
    assert set(asked.keys) == {f"Bearer {SECRET}"}
    assert asked.bodies[-1]["model"] == "big-one"
    assert "cache_salt" not in asked.bodies[-1]
    assert len(asked.bodies) == 5
    assert SECRET not in json.dumps([created, done, items]) + caplog.text
    with database.reader() as session:
        assert session.scalar(text("SELECT api_keys FROM comparisons")) in (None, "null")
