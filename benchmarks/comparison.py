"""What a comparison costs beyond the engine's own time: `python -m benchmarks.comparison`.

Three candidates (the base, the base with a style guide and eight examples, an adapter) answer 200 questions
of the demo, 16 requests at a time: first straight from here to the engine, then as a comparison through
`toque api`, from its creation to its results. The same requests in the same order, each time with a prefix
cache of its own.

`--stand-in` asks, instead of vLLM, a server that answers after a fixed time. The last line is one JSON
object: `ratio` (the comparison's seconds to the engine's own), and what it is made of.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import uvicorn
from openai import OpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.comparisons.chat_client import prompt
from app.comparisons.few_shot import choose_examples
from app.comparisons.plan import Candidate
from app.comparisons.questions import read_questions
from app.demo.house_style import HELDOUT_FILE, STYLE_GUIDE, TRAINING_FILE
from benchmarks.serving.deployment import API_KEY, Deployment, create_deployment
from benchmarks.serving.engines import running_vllm
from benchmarks.serving.measurements import progress

QUESTIONS, EXAMPLES, CONCURRENCY, MAX_TOKENS = 200, 8, 16, 32
_STAND_IN_KEY = "stand-in"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stand-in", action="store_true", help="no vLLM: a server that answers in time")
    parser.add_argument("--seconds", type=float, default=1.0, help="the stand-in's time for an answer")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        _serve_stand_in(options.serve, options.seconds)
        return
    with tempfile.TemporaryDirectory(prefix="toque-bench-") as folder:
        deployment = create_deployment(Path(folder) / "data")
        base = deployment.base.name
        if options.stand_in:
            adapter = f"{base}-adapter"  # never served: the stand-in answers for any model
            with _running_stand_in(options.seconds) as url:
                summary = _measure(deployment, Path(folder), base, adapter, url, _STAND_IN_KEY)
        else:
            [adapter] = deployment.publish_adapters(1)
            with running_vllm(deployment) as vllm:
                progress("vLLM is ready")
                summary = _measure(deployment, Path(folder), base, adapter, vllm.url, vllm.api_key)
    print(json.dumps({"engine": "stand-in" if options.stand_in else "vllm"} | summary))


def _measure(
    deployment: Deployment, folder: Path, base: str, adapter: str, url: str, api_key: str
) -> dict[str, Any]:
    held_out = folder / "heldout.jsonl"
    with TRAINING_FILE.open("rb") as training:
        held_out.write_bytes(b"".join(training.readline() for _ in range(QUESTIONS)))
    engine_seconds = asyncio.run(_ask_directly(held_out, base, adapter, url, api_key))
    progress(f"the engine alone: {engine_seconds:.1f} s")
    with _running_api(deployment, base, url, api_key) as (client, process):
        comparison_seconds = _compare(client, held_out, base, adapter)
        rss = process.memory_info().rss / 2**20
    return {
        "ratio": round(comparison_seconds / engine_seconds, 3),
        "comparison_seconds": round(comparison_seconds, 2),
        "engine_seconds": round(engine_seconds, 2),
        "requests": 3 * QUESTIONS,
        "concurrency": CONCURRENCY,
        "api_rss_mib": round(rss, 1),
    }


async def _ask_directly(held_out: Path, base: str, adapter: str, url: str, api_key: str) -> float:
    """Seconds for the comparison's requests, in its order."""
    requests = _requests(held_out, base, adapter)
    connector = aiohttp.UnixConnector(url.removeprefix("unix:")) if url.startswith("unix:") else None
    address = "http://engine" if connector else url
    headers = {"authorization": f"Bearer {api_key}"}
    waiting = iter(requests)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def ask() -> None:
            for body in waiting:
                async with session.post(f"{address}/v1/chat/completions", json=body) as answer:
                    answer.raise_for_status()
                    await answer.read()

        started = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(CONCURRENCY)))
        return time.perf_counter() - started


def _requests(held_out: Path, base: str, adapter: str) -> list[dict[str, Any]]:
    questions = read_questions(held_out)
    guide = STYLE_GUIDE.read_text("utf-8").strip()
    shown = choose_examples(HELDOUT_FILE, questions, EXAMPLES, 0, "random")
    salt = secrets.token_hex(8)

    def body(candidate: Candidate, number: int) -> dict[str, Any]:
        examples = shown.turns(number) if candidate.examples else []
        messages = prompt(candidate, questions[number], examples)
        sampling = {"max_tokens": MAX_TOKENS, "temperature": 0, "seed": 0, "cache_salt": salt}
        return {"model": candidate.model, "messages": messages} | sampling

    candidates = [
        Candidate(name="base", type="base", model=base),
        Candidate(name="prompted", type="few_shot", model=base, system=guide, examples=EXAMPLES),
        Candidate(name="tuned", type="model", model=adapter),
    ]
    first = [body(candidate, 0) for candidate in candidates]
    return first + [body(candidate, number) for candidate in candidates for number in range(1, QUESTIONS)]


def _compare(client: OpenAI, held_out: Path, base: str, adapter: str) -> float:
    """Seconds from a comparison's creation to its results."""
    files = [client.files.create(file=path, purpose="evals").id for path in (held_out, HELDOUT_FILE)]
    guide = STYLE_GUIDE.read_text("utf-8").strip()
    request = {
        "file": files[0],
        "model": base,
        "grader": "exact_match",
        "max_tokens": MAX_TOKENS,
        "concurrency": CONCURRENCY,
        "exclude_training_overlap": False,
        "candidates": [
            {"type": "base"},
            {"type": "few_shot", "examples": EXAMPLES, "file": files[1], "system": guide},
            {"type": "model", "model": adapter}
            if adapter.startswith("ft:")
            else {"type": "base", "name": "b"},
        ],
    }
    started = time.perf_counter()
    comparison: Any = client.post("/comparisons", cast_to=dict[str, Any], body=request)
    path = f"/comparisons/{comparison['id']}"
    while comparison["status"] in ("queued", "running"):
        time.sleep(0.1)
        comparison = client.get(path, cast_to=dict[str, Any])
    seconds = time.perf_counter() - started
    failures = [each["failures"] for each in comparison["candidates"]]
    if comparison["status"] != "succeeded" or any(failures):
        raise RuntimeError(f"{comparison['status']}, failures {failures}: {comparison['error']}")
    progress(f"the comparison: {seconds:.1f} s; {comparison['verdict']['sentence']}")
    return seconds


@contextmanager
def _running_api(
    deployment: Deployment, base: str, url: str, api_key: str
) -> Iterator[tuple[OpenAI, psutil.Process]]:
    engines = json.dumps([{"base_model": base, "url": url, "api_key": api_key}])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, descriptor = listener.getsockname()[1], listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.cli.main", "api", "--fd", str(descriptor)],
            env=deployment.environment | {"TOQUE_ENGINE_URLS": engines},
            pass_fds=(descriptor,),
        )
    try:
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=API_KEY) as client:
            client.models.list()  # waits until it answers
            yield client, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _running_stand_in(seconds: float) -> Generator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, descriptor = listener.getsockname()[1], listener.fileno()
        command = [sys.executable, "-m", "benchmarks.comparison", "--serve", str(descriptor)]
        process = subprocess.Popen([*command, "--seconds", str(seconds)], pass_fds=(descriptor,))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _serve_stand_in(descriptor: int, seconds: float) -> None:
    async def answer(request: Request) -> Response:
        await request.body()
        await asyncio.sleep(seconds)
        choice = {"index": 0, "message": {"role": "assistant", "content": "[HERON/CLEANING] Rinse it."}}
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        return JSONResponse({"choices": [choice], "usage": usage})

    async def health(_request: Request) -> Response:
        return Response()

    routes = [Route("/health", health), Route("/v1/chat/completions", answer, methods=["POST"])]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="warning", access_log=False))
    server.run([socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main()
