"""What one project's waiting requests cost another: `python -m benchmarks.fair_share`.

Starts `toque serve` with two projects. One keeps 500 requests with answers of 128 tokens in flight, while the
other streams an answer every two seconds. The times to the first token are compared with those at an idle
engine, and with those of the greedy project's own next requests, which are answered in order of arrival.

The last line is one JSON object with the median and the 95th percentile of each in milliseconds, and the
ratio of the other project's medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from openai import OpenAI

from app.core.settings import Settings
from app.demo.service import running_service
from app.models.catalogue import Catalogue
from benchmarks.projects import create_project
from benchmarks.serving.measurements import percentile, progress

REQUESTS, ANSWER_TOKENS = 500, 128
STREAMS, STREAM_TOKENS = 20, 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--streams", type=int, default=STREAMS)
    options = parser.parse_args()
    settings = Settings()
    results: dict[str, Any] = {"requests": options.requests, "cores": os.cpu_count()}
    with (
        tempfile.TemporaryDirectory(prefix="toque-bench-") as folder,
        running_service(settings, Path(folder)) as service,
    ):
        service.await_ready(lambda _: None)
        greedy, other = (create_project(service, name) for name in ("greedy", "other"))
        side = Side(f"{service.address}/v1", Catalogue(settings).engine_base.name)
        asyncio.run(side.stream(other, 3))  # whatever is only slow the first time
        for name, key, requests, streams in (
            ("idle", other, 0, options.streams),
            ("other_project", other, options.requests, options.streams),
            ("same_project", greedy, options.requests, 2),
        ):
            times = asyncio.run(side.measure(greedy, requests, key, streams))
            results[name] = {"p50_ms": round(percentile(times, 50)), "p95_ms": round(percentile(times, 95))}
            progress(f"{name}: {results[name]}")
    results["ratio"] = round(results["other_project"]["p50_ms"] / results["idle"]["p50_ms"], 2)
    results["load_average"] = round(os.getloadavg()[0], 1)
    print(json.dumps(results))


class Side:
    """Both projects, at one service."""

    def __init__(self, base_url: str, model: str) -> None:
        self._base_url = base_url
        self._model = model

    async def measure(self, greedy: str, requests: int, key: str, streams: int) -> list[float]:
        """Return the times to the first token while so many requests with the key `greedy` are in flight."""
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            asking = [asyncio.create_task(self._keep_asking(session, greedy)) for _ in range(requests)]
            if requests:
                await asyncio.sleep(15.0)  # until the engine has received them all
            times = await self.stream(key, streams)
            for task in asking:
                task.cancel()
            await asyncio.wait(asking or [asyncio.create_task(asyncio.sleep(0))])
        await asyncio.sleep(5.0)
        return times

    async def stream(self, key: str, count: int) -> list[float]:
        """Return the milliseconds to the first token of streams, one after the other."""
        return await asyncio.to_thread(self._stream, key, count)

    def _stream(self, key: str, count: int) -> list[float]:
        client = OpenAI(base_url=self._base_url, api_key=key, max_retries=0, timeout=1200)
        found: list[float] = []
        for number in range(count):
            started = time.perf_counter()
            messages: Any = [{"role": "user", "content": f"Which soup is number {number} at {started}?"}]
            stream = client.chat.completions.create(
                model=self._model, messages=messages, max_tokens=STREAM_TOKENS, stream=True
            )
            first = next(each for each in stream if each.choices and each.choices[0].delta.content)
            found.append((time.perf_counter() - started) * 1000)
            del first
            list(stream)
            time.sleep(max(0.0, started + 2.0 - time.perf_counter()))
        return found

    async def _keep_asking(self, session: aiohttp.ClientSession, key: str) -> None:
        while True:
            body = {
                "model": self._model,
                "messages": [{"role": "user", "content": f"Tell me about soup at {time.perf_counter()}."}],
                "max_tokens": ANSWER_TOKENS,
                "min_tokens": ANSWER_TOKENS,
            }
            headers = {"authorization": f"Bearer {key}"}
            with suppress(aiohttp.ClientError):
                async with session.post(
                    f"{self._base_url}/chat/completions", json=body, headers=headers
                ) as answer:
                    await answer.read()
            await asyncio.sleep(0)


if __name__ == "__main__":
    main()
