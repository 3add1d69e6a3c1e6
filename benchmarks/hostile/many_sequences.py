"""The attack with requests for as many answers at once as a request may ask for."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp

_PROMPTS, _ANSWERS = 64, 16
_REFUSED = {"prompt": ["Soup?"] * _PROMPTS, "n": _ANSWERS, "max_tokens": 256}
_ADMITTED = {"prompt": ["Soup?"] * _ANSWERS, "n": 8, "max_tokens": 128}
_AT_ONCE = 4


async def attack(base_url: str, key: str) -> None:
    """Ask in turn for too many answers and for many, four times at once, until cancelled."""
    headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(_ask(session, f"{base_url}/completions"))


async def _ask(session: aiohttp.ClientSession, url: str) -> None:
    while True:
        for body in (_REFUSED, _ADMITTED):
            with suppress(aiohttp.ClientError):
                async with session.post(url, json=body | {"model": "smollm2-135m-instruct"}) as answer:
                    await answer.read()
