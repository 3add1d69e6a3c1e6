"""vLLM as the service starts it, and the same without our kernels; asked directly, on its Unix socket."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self
from unittest.mock import patch

import aiohttp

from app.core.settings import BaseModelEntry, Settings
from benchmarks.serving.deployment import Deployment
from workers.device import Device, cpu
from workers.inference.vllm_process import Vllm

_START_SECONDS = 240.0
_ORDINARY_TOKENS = range(1000, 40_000)
"""Token ids of ordinary words in the demo's base model."""


class StockVllm(Vllm):
    """The same vLLM with its own LoRA kernels; it still finds adapters through our resolver."""

    def _environment(self, settings: Settings, entry: BaseModelEntry, device: Device) -> dict[str, str]:
        return super()._environment(settings, entry, device) | {"VLLM_PLUGINS": "toque_lora_resolver"}


@contextmanager
def running_vllm(deployment: Deployment, kind: type[Vllm] = Vllm) -> Generator[Vllm]:
    """Runs a vLLM until the block ends; yields it once it is ready."""
    with patch.dict(os.environ, deployment.environment):  # what it hands on
        vllm = kind(deployment.settings, deployment.base, cpu())
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not (vllm.healthy() and vllm.completes()):
            if not vllm.alive() or time.monotonic() > deadline:
                raise RuntimeError(vllm.reason())
            time.sleep(0.5)
        yield vllm
    finally:
        vllm.stop()


class EngineError(Exception):
    """A request was not answered."""


class EngineClient:
    """Sends completion requests to one engine."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    @asynccontextmanager
    async def connect(cls, vllm: Vllm) -> AsyncGenerator[Self]:
        connector = aiohttp.UnixConnector(vllm.url.removeprefix("unix:"), limit=0)
        headers = {"authorization": f"Bearer {vllm.api_key}"}
        timeout = aiohttp.ClientTimeout(total=600)
        async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
            yield cls(session)

    async def complete(self, model: str, prompt: str | list[int], tokens: int, **more: Any) -> dict[str, Any]:
        """Returns the answer's one choice, which is always `tokens` long."""
        body = _body(model, prompt, tokens, **more)
        async with self._session.post("http://engine/v1/completions", json=body) as answer:
            content = await answer.json()
            if answer.status != 200:
                raise EngineError(f"{model}: {answer.status} {content}")
            return content["choices"][0]

    async def token_times(self, model: str, prompt: list[int], tokens: int) -> AsyncGenerator[float]:
        """Returns the arrival time of each chunk of a streamed answer, which has one token or several."""
        body, ended = _body(model, prompt, tokens, stream=True), False
        async with self._session.post("http://engine/v1/completions", json=body) as response:
            if response.status != 200:
                raise EngineError(f"{model}: {response.status} {await response.text()}")
            async for line in response.content:
                if line.startswith(b"data: {"):
                    if "error" in (event := json.loads(line[6:])):
                        raise EngineError(f"{model}: {event}")
                    ended = event["choices"][0]["finish_reason"] == "length"
                    yield time.perf_counter()
        if not ended:
            raise EngineError(f"{model}: the answer broke off")


def _body(model: str, prompt: str | list[int], tokens: int, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        **more,
    }


def random_prompt(source: random.Random, length: int) -> list[int]:
    """Returns a prompt that is never the same twice, so that the prefix cache cannot help."""
    return source.choices(_ORDINARY_TOKENS, k=length)


def in_turn(models: Sequence[str], count: int) -> list[str]:
    """Returns `count` items, each of them equally often."""
    return [models[number % len(models)] for number in range(count)]
