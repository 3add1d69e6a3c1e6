"""Who is refused again and again waits for it, and nobody else does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import cast

import pytest
from openai import NotFoundError, OpenAI
from starlette.types import Message, Receive, Scope, Send

from app.api import refusal_pace
from app.api.refusal_pace import RefusalPace
from app.core.database import Database
from app.core.settings import Settings
from tests.app.api.conftest import Pace
from tests.support.service import OTHER_KEY, Service, run_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database

AT_ONCE = 50


@pytest.fixture(autouse=True)
def _no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or slow requests would not be in excess of the rate."""
    monkeypatch.setattr(refusal_pace, "time", SimpleNamespace(monotonic=lambda: 1000.0))


@pytest.fixture
def service(settings: Settings, database: Database) -> Iterator[Service]:
    with run_service(settings.model_copy(update={"refusals_per_second": 2.0})) as running:
        yield running


def test_only_refusals_wait_and_only_those_of_one_key(service: Service, pace: Pace) -> None:
    with (
        service.client() as client,
        service.client(OTHER_KEY) as other,
        ThreadPoolExecutor(6) as threads,
        pace.held(),
    ):
        for _ in range(AT_ONCE):
            _ask_for_no_file(client)
        assert pace.waits == []
        late = [threads.submit(_ask_for_no_file, client) for _ in range(6)]
        wait_until(lambda: len(pace.waits) == 6, "all wait")
        assert sorted(pace.waits) == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
        assert client.models.list().data, "what it is allowed"
        _ask_for_no_file(other)
        assert not any(each.done() for each in late)
        pace.let_go()
        for each in late:
            each.result()


def test_strangers_wait_by_their_address(service: Service, pace: Pace) -> None:
    with (
        service.http(key=None) as stranger,
        service.client() as client,
        ThreadPoolExecutor(6) as threads,
        pace.held(),
    ):
        for _ in range(AT_ONCE):
            assert stranger.get("/v1/models").status_code == 401
        assert pace.waits == []
        late = [threads.submit(stranger.get, "/v1/models") for _ in range(6)]
        wait_until(lambda: len(pace.waits) == 6, "all wait")
        _ask_for_no_file(client)  # it has a key, whatever others at its address do
        assert not any(each.done() for each in late)
        pace.let_go()
        answers = [each.result() for each in late]
    assert {answer.json()["error"]["code"] for answer in answers} == {"invalid_api_key"}


def test_a_network_is_one_caller_and_those_refused_long_ago_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refusal_pace, "_MOST_CALLERS", 3)

    async def refuse(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body"})

    async def ask() -> None:
        pace = RefusalPace(refuse, per_second=0.5)

        async def waits(address: str) -> bool:
            sent: list[Message] = []

            async def send(message: Message) -> None:
                sent.append(message)

            scope: Scope = {"type": "http", "client": (address, 1)}
            asking = asyncio.create_task(pace(scope, cast(Receive, None), send))
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert len(sent) in (0, 2)
            return not sent

        for number in range(AT_ONCE):
            assert not await waits(f"2001:db8::{number + 1:x}")
        assert await waits("2001:db8::ffff:1"), "its owner may choose any address"
        for other in ("2001:db8:0:1::1", "::ffff:192.0.2.1"):
            assert not await waits(other)
        assert await waits("2001:db8::1"), "it is remembered"
        for other in ("192.0.2.2", "192.0.2.3", "192.0.2.4"):
            assert not await waits(other)
        assert not await waits("2001:db8::1"), "it is forgotten"

    asyncio.run(ask())


def _ask_for_no_file(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="file-none"):
        client.files.retrieve("file-none")
