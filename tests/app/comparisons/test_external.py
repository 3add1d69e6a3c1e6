"""External endpoints: asked only where the operator allows it, and their keys shown to nobody."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from typing import Any, cast

import openai
import pytest
from sqlalchemy import text
from tenacity import wait_none

from app.comparisons.chat_client import ChatClient, Reply
from app.comparisons.external import Endpoint, ExternalEndpoints
from app.completions.gateway import Gateway
from app.completions.retrying import TRIES
from app.core.database import Database
from app.core.settings import Settings
from tests.app.comparisons.stub_engine import (
    create,
    ended,
    get,
    lines,
    number_asked,
    question,
    reference,
    upload,
)
from tests.support.service import run_service

SECRET = "sk-elsewhere-very-secret"
NOWHERE = "http://127.0.0.1:9/v1"
Ask = Callable[[str], Awaitable[Reply]]


class Elsewhere:
    """Another service: busy at first, and refuses one question; `troubles` come before all else."""

    def __init__(self) -> None:
        self.troubles: Iterator[tuple[int, str | None]] = iter(())
        """Statuses, each with a `retry-after` or none."""
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
            status, retry_after = next(service.troubles, (0, None))
            answer: dict[str, Any] = {}
            if status == 0:
                status, answer = service.answer(self.headers.get("authorization"), body)
            self.send_response(status)
            if retry_after is not None:
                self.send_header("retry-after", retry_after)
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


@pytest.fixture
async def ask(settings: Settings) -> AsyncIterator[Ask]:
    """Asks an address the third question."""
    external = ExternalEndpoints(settings)
    chat_client = ChatClient(cast("Any", None), external, "project")
    messages = [{"role": "user", "content": question(3)}]
    yield lambda base_url: chat_client.ask("big-one", messages, endpoint=Endpoint(base_url, None))
    await external.close()


@pytest.fixture
def no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.comparisons.chat_client.BACK_OFF", wait_none())


@pytest.mark.one_database
@pytest.mark.parametrize("key", [SECRET, 'sk-"quoted"/secret'])
@pytest.mark.parametrize("status", [200, 400])
async def test_a_key_that_is_echoed_is_not_passed_on(
    status: int,
    key: str,
    settings: Settings,
    elsewhere: tuple[Elsewhere, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, base_url = elsewhere

    def echo(authorization: str | None, _body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        said = f"{'x' * 470} not with {authorization}"
        call = {"id": said, "function": {"name": "f", "arguments": said}}
        message = {"role": "assistant", "content": said, "tool_calls": [call]}
        return status, {"error": {"message": said}, "choices": [{"message": message}]}

    monkeypatch.setattr(service, "answer", echo)
    external = ExternalEndpoints(settings)
    chat_client = ChatClient(cast("Any", None), external, "project")
    messages = [{"role": "user", "content": question(3)}]
    reply = await chat_client.ask("big-one", messages, endpoint=Endpoint(base_url, key))
    await external.close()

    assert "secret" not in repr(reply) and "sk-" not in repr(reply)
    if status == 200:
        assert "Bearer [redacted]" in str(reply.text)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 2}, (7, 2)),
        ({"prompt_tokens": -7, "completion_tokens": 2**31}, (0, 0)),
        ({"prompt_tokens": 1e300, "completion_tokens": "9"}, (0, 0)),
        ({"prompt_tokens": True, "completion_tokens": [1]}, (0, 0)),
        ([1], (0, 0)),
        (None, (0, 0)),
    ],
)
def test_counts_that_cannot_be_are_not_taken(usage: Any, tokens: tuple[int, int]) -> None:
    class Says:
        async def ask(self, _endpoint: Endpoint, _body: bytes) -> bytes:
            return json.dumps({"choices": [{"message": {"content": "Yes."}}], "usage": usage}).encode()

    chat_client = ChatClient(cast("Gateway", None), cast("ExternalEndpoints", Says()), "proj")
    reply = asyncio.run(
        chat_client.ask("m", [{"role": "user", "content": "?"}], endpoint=Endpoint("http://x", None))
    )
    assert (reply.text, reply.error) == ("Yes.", None)
    assert (reply.input_tokens, reply.output_tokens) == tokens


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


@pytest.mark.usefixtures("no_back_off")
async def test_an_endpoint_that_is_away_is_waited_for(elsewhere: tuple[Elsewhere, str], ask: Ask) -> None:
    service, base_url = elsewhere
    service.bodies.append({})  # no longer new
    away = [(status, None) for status in (429, 502, 503, 504)]
    service.troubles = iter(away * 5)
    assert (await ask(base_url)).text == reference(3)


@pytest.mark.usefixtures("no_back_off")
async def test_it_is_left_alone_for_as_long_as_it_asks(
    elsewhere: tuple[Elsewhere, str], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, base_url = elsewhere
    pauses: list[float] = []

    async def rest(seconds: float, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        pauses.append(seconds)
        await pause(0)

    monkeypatch.setattr(asyncio, "sleep", rest)
    service.bodies.append({})
    began = time.time()
    date = int(began) + 50
    service.troubles = iter([(429, "1"), (503, formatdate(date, usegmt=True)), (429, "soon")])
    assert (await ask(base_url)).text == reference(3)
    for_seconds, until_date, for_no_time = pauses
    assert (for_seconds, for_no_time) == (1.0, 0.0)
    assert date - time.time() <= until_date <= date - began
    monkeypatch.setattr("app.comparisons.chat_client._LONGEST_WISH", 0.1)
    service.troubles = iter([(429, "9" * 400)])
    assert (await ask(base_url)).text == reference(3)
    assert pauses[3:] == [0.1]


@pytest.mark.usefixtures("no_back_off")
async def test_an_endpoint_that_never_comes_back_is_given_up(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.comparisons.chat_client._LONGEST_SILENCE", 0.5)
    tries: list[str] = []
    try_once = ExternalEndpoints.ask

    async def count(self: ExternalEndpoints, endpoint: Endpoint, body: bytes) -> bytes:
        tries.append(endpoint.base_url)
        return await try_once(self, endpoint, body)

    monkeypatch.setattr(ExternalEndpoints, "ask", count)
    started = time.monotonic()
    assert "cannot be reached" in ((await ask(NOWHERE)).error or "")
    assert time.monotonic() - started > 0.5
    tries.clear()
    assert "cannot be reached" in ((await ask(NOWHERE)).error or "")
    assert len(tries) == TRIES, "the silence is the endpoint's, not each question's"


@pytest.mark.usefixtures("no_back_off")
async def test_what_is_only_this_questions_trouble_ends(
    elsewhere: tuple[Elsewhere, str], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, base_url = elsewhere
    service.troubles = repeat((500, None))
    assert "failed (status 500)" in ((await ask(base_url)).error or "")
    monkeypatch.setattr("app.comparisons.chat_client._LONGEST_WAIT", 0.3)
    service.troubles = repeat((504, None))
    assert "away (status 504)" in ((await ask(base_url)).error or "")
