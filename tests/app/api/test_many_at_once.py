"""More requests at once than there are threads and connections to the database."""

from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp

from app.core.database import Database
from tests.support.lineage import add_models
from tests.support.service import API_KEY, Service

_AT_ONCE = 80


def test_all_are_answered(service: Service, database: Database) -> None:
    """A request keeps its connection while it waits for a thread, and threads wait for connections."""
    add_models(database, 100)

    async def list_jobs(session: aiohttp.ClientSession) -> int:
        async with session.get("/v1/fine_tuning/jobs", params={"limit": 100}) as answer:
            await answer.read()
            return answer.status

    async def ask() -> Counter[int]:
        headers = {"authorization": f"Bearer {API_KEY}"}
        connector = aiohttp.TCPConnector(limit=_AT_ONCE)
        async with aiohttp.ClientSession(service.url, headers=headers, connector=connector) as session:
            return Counter(await asyncio.gather(*(list_jobs(session) for _ in range(2 * _AT_ONCE))))

    assert asyncio.run(ask()) == {200: 2 * _AT_ONCE}
