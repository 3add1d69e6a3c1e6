"""A batch against a plain client, and what it costs those who wait: `python -m benchmarks.batch`.

Throughput: the same requests, every prompt new, straight from an asyncio client to vLLM at its best
concurrency (found first, by doubling), and as a batch through `toque api`, from `in_progress` to the
published output file. The two take turns, some seconds apart. `ratio` is that of their tokens per second.

Latency: a stream through the gateway every second, with nothing else to do and beside a batch, in turns.
`ttft_ratio` is that of the times to the first token that 95 % of the streams do not exceed.

The last line is one JSON object; lists are median, lowest and highest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from openai import OpenAI

from app.batches.models import Batch
from app.completions.models import Engine
from app.core.database import Database, database_now
from benchmarks.serving.deployment import API_KEY, Deployment, create_deployment
from benchmarks.serving.engines import running_vllm
from benchmarks.serving.measurements import Measurements, percentile, progress
from workers.inference.vllm_process import Vllm

REQUESTS, PROMPT_WORDS, ANSWER_TOKENS = 384, 48, 48
CONCURRENCIES = (8, 16, 32, 64, 128, 256)
STREAMS, STREAM_TOKENS = 40, 12
"""Streams of one turn, and the tokens of each."""
LONG_BATCH = 20_000
"""Requests of a batch that does not end while streams are measured."""
_PATH = "/v1/chat/completions"
_WORDS = (Path(__file__).parents[1] / "app/demo/style_guide.md").read_text("utf-8").split()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("throughput", "latency"))
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it runs")
    options = parser.parse_args()
    began, loads = time.monotonic(), [os.getloadavg()[0]]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="toque-bench-") as folder:
        deployment = create_deployment(Path(folder) / "data")
        with running_vllm(deployment) as vllm, _running_api(deployment, vllm) as client:
            progress("vLLM is ready")
            side = Side(deployment, client, vllm)
            if options.only != "latency":
                results |= side.measure_throughput(options.rounds, 48 if options.quick else REQUESTS)
                loads.append(os.getloadavg()[0])
            if options.only != "throughput":
                results |= side.measure_latency(options.rounds, 8 if options.quick else STREAMS)
                loads.append(os.getloadavg()[0])
    results |= {
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "load_average": [round(load, 1) for load in loads],
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(results))


class Side:
    """Both sides of the comparison, at one engine."""

    def __init__(self, deployment: Deployment, client: OpenAI, vllm: Vllm) -> None:
        self._client = client
        self._vllm = vllm
        self._base = deployment.base.name
        self._database = Database(deployment.settings.sqlalchemy_url)
        self._source = random.Random(0)

    def measure_throughput(self, rounds: int, requests: int) -> dict[str, Any]:
        """Measure tokens per second of a plain client at its best concurrency, and of a batch."""
        by_concurrency: dict[int, float] = {}
        for concurrency in CONCURRENCIES:
            bodies = self._bodies(min(requests, 3 * concurrency))
            rate = asyncio.run(self._ask_directly(bodies, concurrency))
            by_concurrency[concurrency] = round(rate, 1)
            progress(f"straight to vLLM, {concurrency} at once: {rate:.1f} tokens/s")
        best = max(by_concurrency, key=by_concurrency.__getitem__)
        measured = Measurements()
        for number in range(rounds):
            direct = asyncio.run(self._ask_directly(self._bodies(requests), best))
            measured.add("direct_tokens_per_second", direct)
            time.sleep(
                6.0
            )  # until the engine no longer shortens the steps of batches for the next such request
            measured.add("batch_tokens_per_second", self._run_batch(self._bodies(requests)))
            progress(f"throughput {number + 1}/{rounds}: {measured.last()}")
        return {
            "ratio": measured.ratio("batch_tokens_per_second", "direct_tokens_per_second"),
            "best_concurrency": best,
            "by_concurrency": by_concurrency,
            "requests": requests,
            **measured.spreads(),
        }

    def measure_latency(self, rounds: int, streams: int) -> dict[str, Any]:
        """Measure the time to the first token of streams, alone and beside a batch."""
        idle: list[float] = []
        beside: list[float] = []
        for number in range(rounds):
            idle += self._stream(streams)
            batch = self._create(self._bodies(LONG_BATCH))
            self._wait(batch, "in_progress")
            time.sleep(5.0)  # until the engine is full of it
            before = self._completed(batch)
            beside += self._stream(streams)
            progress(f"the batch answered {self._completed(batch) - before} requests meanwhile")
            self._client.batches.cancel(batch)
            self._wait(batch, "cancelled")
            progress(
                f"latency {number + 1}/{rounds}: p95 {percentile(idle, 95):.0f} ms idle, "
                f"{percentile(beside, 95):.0f} ms beside a batch"
            )
        return {
            "ttft_ratio": round(percentile(beside, 95) / percentile(idle, 95), 3),
            "streams": len(idle),
            "idle_ttft_ms": _quantiles(idle),
            "beside_batch_ttft_ms": _quantiles(beside),
        }

    def _bodies(self, count: int) -> list[dict[str, Any]]:
        """Return requests with prompts that no cache knows, and answers of one length."""
        return [self._body(ANSWER_TOKENS) for _ in range(count)]

    def _body(self, tokens: int) -> dict[str, Any]:
        text = " ".join(self._source.choices(_WORDS, k=PROMPT_WORDS))
        return {
            "model": self._base,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens,
            "min_tokens": tokens,
            "temperature": 0,
        }

    async def _ask_directly(self, bodies: Sequence[dict[str, Any]], concurrency: int) -> float:
        """Return the tokens per second of a client without anything between it and vLLM."""
        connector = aiohttp.UnixConnector(self._vllm.url.removeprefix("unix:"), limit=0)
        headers = {"authorization": f"Bearer {self._vllm.api_key}"}
        waiting, tokens = iter(bodies), 0
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

            async def ask() -> None:
                nonlocal tokens
                for body in waiting:
                    async with session.post(f"http://engine{_PATH}", json=body) as answer:
                        answer.raise_for_status()
                        tokens += (await answer.json())["usage"]["completion_tokens"]

            started = time.perf_counter()
            await asyncio.gather(*(ask() for _ in range(concurrency)))
            return tokens / (time.perf_counter() - started)

    def _run_batch(self, bodies: Sequence[dict[str, Any]]) -> float:
        """Return the tokens per second from the batch's start to its published output."""
        batch = self._create(bodies)
        self._wait(batch, "completed")
        with self._database.reader() as session:
            row = session.get_one(Batch, batch)
            if row.completed != len(bodies) or row.completed_at is None or row.in_progress_at is None:
                raise RuntimeError(f"{row.completed} of {len(bodies)} requests were answered")
            return row.output_tokens / (row.completed_at - row.in_progress_at)

    def _create(self, bodies: Sequence[dict[str, Any]]) -> str:
        requests = [
            {"custom_id": str(number), "method": "POST", "url": _PATH, "body": body}
            for number, body in enumerate(bodies)
        ]
        content = "\n".join(map(json.dumps, requests)).encode()
        file = self._client.files.create(file=("requests.jsonl", content), purpose="batch")
        return self._client.batches.create(input_file_id=file.id, endpoint=_PATH, completion_window="24h").id

    def _wait(self, batch: str, status: str) -> None:
        while (seen := self._client.batches.retrieve(batch)).status != status:
            if seen.status in ("failed", "expired"):
                raise RuntimeError(f"{batch} is {seen.status}: {seen.errors}")
            time.sleep(0.5)

    def _completed(self, batch: str) -> int:
        counts = self._client.batches.retrieve(batch).request_counts
        return counts.completed if counts else 0

    def _stream(self, count: int) -> list[float]:
        """Return the milliseconds to the first token of streams that begin a second apart."""
        found: list[float] = []
        for _ in range(count):
            body = self._body(STREAM_TOKENS)
            started = time.perf_counter()
            first = None
            del body["min_tokens"]
            for chunk in self._client.chat.completions.create(**body, stream=True):
                if first is None and chunk.choices and chunk.choices[0].delta.content:
                    first = time.perf_counter() - started
            found.append((first or 0.0) * 1000)
            time.sleep(max(0.0, started + 1.0 - time.perf_counter()))
        return found


def _quantiles(values: list[float]) -> dict[str, float]:
    return {f"p{percent}": round(percentile(values, percent), 1) for percent in (50, 95, 99)}


@contextmanager
def _running_api(deployment: Deployment, vllm: Vllm) -> Iterator[OpenAI]:
    """Runs `toque api` beside the engine, which is registered as one that reports itself."""
    _register(deployment, vllm)
    with _listener() as (port, descriptor):
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.cli.main", "api", "--fd", str(descriptor)],
            env=deployment.environment,
            pass_fds=(descriptor,),
        )
    try:
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=API_KEY) as client:
            client.models.list()  # waits until it answers
            yield client
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _listener() -> Generator[tuple[int, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1], listener.fileno()


def _register(deployment: Deployment, vllm: Vllm) -> None:
    database = Database(deployment.settings.sqlalchemy_url)
    with database.writer() as session:
        session.add(
            Engine(
                base_model=deployment.base.name,
                url=vllm.url,
                api_key=vllm.api_key,
                status="ready",
                device="cpu",
                version="",
                started_at=time.time(),
                heartbeat_at=database_now() + 86_400,
            )
        )
    database.dispose()


if __name__ == "__main__":
    main()
