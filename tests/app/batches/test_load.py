"""How many requests of batches an engine has at once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import override

from app.core.database import Database
from tests.app.comparisons.stub_engine import StubEngine, number_asked, reference
from tests.support.batch_files import create, ended, lines
from tests.support.engine_stand_in import register_engine, run_engine
from tests.support.waiting import wait_until

COMPUTED = 50


class BoundedEngine(StubEngine):
    """Computes so many requests at once, and lets the others wait."""

    @override
    async def _metrics(self, request: Request) -> Response:
        running = min(self.in_flight, COMPUTED)
        return Response(
            f'vllm:num_requests_running{{engine="0"}} {running}.0\n'
            f'vllm:num_requests_waiting{{engine="0"}} {self.in_flight - running}.0\n'
            f'vllm:num_requests_waiting_by_reason{{engine="0"}} 7.0\n'
        )


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        yield str(Path(folder) / "engine.sock")


@pytest.fixture
def engine(address: str) -> Iterator[BoundedEngine]:
    engine = BoundedEngine(lambda body: reference(number_asked(body)))
    engine.hold_after = 0
    with run_engine(engine, address):
        yield engine


@pytest.mark.one_database
def test_an_engine_has_as_many_as_it_computes_and_a_few_that_wait(
    client: OpenAI, database: Database, engine: BoundedEngine, address: str
) -> None:
    engine.go_on.clear()
    batches = [create(client, lines(range(150))).id for _ in range(2)]
    for batch in batches:
        wait_until(lambda batch=batch: client.batches.retrieve(batch).status == "in_progress", "it has begun")
    register_engine(database, f"unix:{address}")
    few = 8 + COMPUTED // 2
    wait_until(lambda: engine.in_flight >= COMPUTED + few, "the engine is full", seconds=60)
    assert list(map(number_asked, engine.bodies)).count(0) == 2, "both batches are asked, in turns"
    engine.go_on.set()
    assert {ended(client, batch).status for batch in batches} == {"completed"}
    assert engine.most_in_flight <= COMPUTED + 2 * few
