"""More requests at once than there are threads and connections to the database."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import NoReturn

import aiohttp
import pytest

from app.core.database import Database
from app.core.errors import InvalidRequestError
from app.fine_tuning.preflight import service as preflight
from tests.support.lineage import add_models
from tests.support.service import API_KEY, BASE_MODEL, Service

_AT_ONCE = 80


def test_all_are_answered(service: Service, database: Database) -> None:
    """A request keeps its connection while it waits for a thread, and threads wait for connections."""
    add_models(database, 50)

    async def list_jobs(session: aiohttp.ClientSession) -> int:
        async with session.get("/v1/fine_tuning/jobs", params={"limit": 50}) as answer:
            await answer.read()
            return answer.status

    async def ask() -> Counter[int]:
        headers = {"authorization": f"Bearer {API_KEY}"}
        connector = aiohttp.TCPConnector(limit=_AT_ONCE)
        async with aiohttp.ClientSession(service.url, headers=headers, connector=connector) as session:
            return Counter(await asyncio.gather(*(list_jobs(session) for _ in range(_AT_ONCE))))

    assert asyncio.run(ask()) == {200: _AT_ONCE}


def test_those_that_wait_for_child_processes_leave_threads_to_others(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run counts a file in a child process, of which there are two: its thread only waits."""
    counted = threading.Event()

    def check_job(*_: object) -> NoReturn:
        assert counted.wait(60)
        raise InvalidRequestError("This is over.")

    monkeypatch.setattr(preflight, "check_job", check_job)

    async def dry_run(session: aiohttp.ClientSession) -> int:
        body = {"model": BASE_MODEL, "training_file": "file-x", "dry_run": True}
        async with session.post("/v1/fine_tuning/jobs", json=body) as answer:
            return answer.status

    async def ask() -> tuple[int, Counter[int]]:
        headers = {"authorization": f"Bearer {API_KEY}"}
        connector = aiohttp.TCPConnector(limit=_AT_ONCE)
        async with aiohttp.ClientSession(service.url, headers=headers, connector=connector) as session:
            waiting = [asyncio.create_task(dry_run(session)) for _ in range(60)]
            await asyncio.sleep(1)
            try:
                async with asyncio.timeout(50), session.get("/v1/files") as answer:
                    other = answer.status
            finally:
                counted.set()
            return other, Counter(await asyncio.gather(*waiting))

    assert asyncio.run(ask()) == (200, {400: 60})
