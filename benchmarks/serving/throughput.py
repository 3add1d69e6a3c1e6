"""Tokens a second with eight adapters in every batch and with none, by our kernels and by vLLM's own."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import psutil

from benchmarks.serving.engines import EngineClient, in_turn, random_prompt
from benchmarks.serving.measurements import Measurements, progress
from workers.inference.vllm_process import Vllm

CONCURRENCY = 16
REQUESTS = 48
PROMPT_TOKENS = 128
ANSWER_TOKENS = 32


def measure(
    ours: Vllm, stock: Vllm, base: str, adapters: list[str], rounds: int, quick: bool
) -> dict[str, Any]:
    """Measures both engines, which run at the same time but are asked one at a time."""
    return asyncio.run(_measure(ours, stock, base, adapters, rounds, quick))


async def _measure(
    ours: Vllm, stock: Vllm, base: str, adapters: list[str], rounds: int, quick: bool
) -> dict[str, Any]:
    measured = Measurements()
    source = random.Random(4)
    requests = CONCURRENCY if quick else REQUESTS
    async with EngineClient.connect(ours) as our_client, EngineClient.connect(stock) as stock_client:
        engines = {"toque": (ours, our_client), "stock": (stock, stock_client)}
        for _, client in engines.values():  # loads the adapters
            for model in (base, *adapters):
                await client.complete(model, random_prompt(source, PROMPT_TOKENS), 2)
        for number in range(rounds):
            for name, (engine, client) in engines.items():
                for mix, models in (("base", [base]), ("mixed", adapters)):
                    before = cpu_seconds(engine)
                    rate = await tokens_per_second(client, in_turn(models, requests), source)
                    tokens, used = requests * ANSWER_TOKENS, cpu_seconds(engine) - before
                    measured.add(f"{name}_{mix}_tokens_per_second", rate)
                    measured.add(f"{name}_{mix}_tokens_per_cpu_second", tokens / used)
            progress(f"throughput {number + 1}/{rounds}: {measured.last()}")
    rate, cpu_rate = "{}_tokens_per_second".format, "{}_tokens_per_cpu_second".format
    return {
        "mixed_ratio": measured.ratio(rate("toque_mixed"), rate("toque_base")),
        "stock_ratio": measured.ratio(rate("toque_mixed"), rate("stock_mixed")),
        "base_ratio": measured.ratio(rate("toque_base"), rate("stock_base")),
        # Processor time is what others on the machine take least from.
        "mixed_cpu_ratio": measured.ratio(cpu_rate("toque_mixed"), cpu_rate("toque_base")),
        "stock_cpu_ratio": measured.ratio(cpu_rate("toque_mixed"), cpu_rate("stock_mixed")),
        "base_cpu_ratio": measured.ratio(cpu_rate("toque_base"), cpu_rate("stock_base")),
        "throughput": measured.spreads(),
    }


def cpu_seconds(engine: Vllm) -> float:
    """Returns the CPU seconds used so far by all processes of an engine."""
    main = psutil.Process(engine._process.pid)
    return sum(sum(process.cpu_times()[:2]) for process in (main, *main.children(recursive=True)))


async def tokens_per_second(client: EngineClient, models: list[str], source: random.Random) -> float:
    """Returns the tokens per second of one request to each model, 16 at once."""
    free = asyncio.Semaphore(CONCURRENCY)

    async def one(model: str, prompt: list[int]) -> None:
        async with free:
            await client.complete(model, prompt, ANSWER_TOKENS)

    asked = [(model, random_prompt(source, PROMPT_TOKENS)) for model in models]
    began = time.perf_counter()
    await asyncio.gather(*(one(model, prompt) for model, prompt in asked))
    return len(models) * ANSWER_TOKENS / (time.perf_counter() - began)
