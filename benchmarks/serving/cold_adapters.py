"""64 adapters over 8 slots: what a request waits for an adapter that has no slot, and what others notice.

One request at a time asks for an adapter, so that it is known which eight have a slot, while a few streams
of the base model go on: first of eight adapters in turn (warm), then of 64 uniformly at random (cold, unless
it was one of the last eight). In the end 16 at once ask for any of the 64.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from benchmarks.serving.deployment import SLOTS
from benchmarks.serving.engines import EngineClient, EngineError, random_prompt
from benchmarks.serving.measurements import percentile, progress
from workers.inference.vllm_process import Vllm

ADAPTERS = 64
STREAMS = 4
ALLOWANCE_SECONDS = 0.1
"""A cold adapter may take this much longer, and then 1.5 times as long."""
_CROWD = 16
_PROMPT_TOKENS = 128
_ANSWER_TOKENS = 4
_STREAM_TOKENS = 256


class Failures:
    """Counts requests that were not answered, and keeps the first error."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, error: Exception) -> None:
        if not self.count:
            progress(f"a request failed: {error!r}")
        self.count += 1


def measure(engine: Vllm, base: str, adapters: list[str], quick: bool) -> dict[str, Any]:
    return asyncio.run(_measure(engine, base, adapters, quick))


async def _measure(engine: Vllm, base: str, adapters: list[str], quick: bool) -> dict[str, Any]:
    source, failures = random.Random(64), Failures()
    requests = 24 if quick else 160
    async with EngineClient.connect(engine) as client:
        for model in adapters[:SLOTS]:
            await client.complete(model, random_prompt(source, _PROMPT_TOKENS), 2)
        async with Streams(client, base, source, failures) as streams:
            await asyncio.sleep(3)
            warm = [
                await _first_token(client, adapters[number % SLOTS], source, failures)
                for number in range(requests)
            ]
            gaps_without_loads = streams.take_gaps()
            progress(f"cold adapters: {len(warm)} warm requests done")
            cold: list[float] = []
            read: list[float] = []
            recent = adapters[:SLOTS]
            seen = set(recent)
            for _ in range(requests):
                model = source.choice(adapters)
                seconds = await _first_token(client, model, source, failures)
                if model in recent:
                    recent.remove(model)
                else:
                    cold.append(seconds)
                if model not in seen:
                    read.append(seconds)
                    seen.add(model)
                recent = [*recent, model][-SLOTS:]
            gaps_with_loads = streams.take_gaps()
        progress(f"cold adapters: {len(cold)} cold requests done")
        crowd = [source.choice(adapters) for _ in range(_CROWD if quick else 6 * _CROWD)]
        await _all_at_once(client, crowd, source, failures)
    warm_p95, cold_p95 = percentile(warm, 95), percentile(cold, 95)
    return {
        "cold_ttft_ratio": round((cold_p95 - ALLOWANCE_SECONDS) / warm_p95, 3),
        "gap_ratio": round(percentile(gaps_with_loads, 99) / percentile(gaps_without_loads, 99), 3),
        "cold_failures": failures.count,
        "cold_adapters": {
            "warm_ttft_p50_ms": _milliseconds(percentile(warm, 50)),
            "warm_ttft_p95_ms": _milliseconds(warm_p95),
            "cold_ttft_p50_ms": _milliseconds(percentile(cold, 50)),
            "cold_ttft_p95_ms": _milliseconds(cold_p95),
            "first_ever_ttft_p95_ms": _milliseconds(percentile(read, 95)),
            "gap_p99_ms": _milliseconds(percentile(gaps_without_loads, 99)),
            "gap_p99_with_loads_ms": _milliseconds(percentile(gaps_with_loads, 99)),
            "gap_p50_ms": _milliseconds(percentile(gaps_without_loads, 50)),
            "gap_p50_with_loads_ms": _milliseconds(percentile(gaps_with_loads, 50)),
            "warm_requests": len(warm),
            "cold_requests": len(cold),
        },
    }


class Streams:
    """A few streamed answers of the base model that run beside everything else."""

    def __init__(self, client: EngineClient, base: str, source: random.Random, failures: Failures) -> None:
        self._client, self._base, self._source, self._failures = client, base, source, failures
        self._gaps: list[float] = []
        self._going: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Streams:
        self._going = [asyncio.create_task(self._go_on()) for _ in range(STREAMS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for stream in self._going:
            stream.cancel()
        await asyncio.gather(*self._going, return_exceptions=True)

    def take_gaps(self) -> list[float]:
        """Returns the gaps between tokens since the last call, in seconds."""
        gaps, self._gaps = self._gaps, []
        return gaps

    async def _go_on(self) -> None:
        while True:
            prompt, before = random_prompt(self._source, 16), 0.0
            try:
                async for now in self._client.token_times(self._base, prompt, _STREAM_TOKENS):
                    if before:
                        self._gaps.append(now - before)
                    before = now
            except (EngineError, OSError) as error:
                self._failures.add(error)


async def _first_token(client: EngineClient, model: str, source: random.Random, failures: Failures) -> float:
    """Returns the seconds until the first token; infinity if none comes."""
    prompt, asked = random_prompt(source, _PROMPT_TOKENS), time.perf_counter()
    try:
        waits = [now - asked async for now in client.token_times(model, prompt, _ANSWER_TOKENS)]
        return waits[0]
    except (EngineError, OSError) as error:
        failures.add(error)
        return float("inf")


async def _all_at_once(
    client: EngineClient, models: list[str], source: random.Random, failures: Failures
) -> None:
    free = asyncio.Semaphore(_CROWD)

    async def one(model: str) -> None:
        async with free:
            await _first_token(client, model, source, failures)

    await asyncio.gather(*map(one, models))


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
