"""What one caller's attacks cost another: `python -m benchmarks.hostile [ATTACK…]`.

Starts `toque serve` with two projects. For each attack of this package, one project (or a stranger) attacks
from a process of its own, while another streams an answer every second, uploads a dataset, and trains on it.
The times to the first token are compared with those just before the attack.

The last line is one JSON object. For each attack it has `idle_ttft_ms` and `ttft_ms` (the times that 95 % of
the streams do not exceed), their ratio, `api_mib` (the largest resident memory of the API's process),
`engine_restarts`, and how long the upload's check and the job took in seconds; at its end the worst of all
attacks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pkgutil
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from openai import ConflictError, OpenAI

import benchmarks.hostile
from app.core.settings import Settings
from app.demo.service import ServiceProcess, running_service
from app.models.catalogue import Catalogue
from benchmarks.projects import create_project
from benchmarks.serving.measurements import percentile, progress

ATTACKS = [
    module.name for module in pkgutil.iter_modules(benchmarks.hostile.__path__) if module.name != "__main__"
]
STREAMS, STREAM_TOKENS = 20, 12
PATIENCE_SECONDS = 300.0
"""How long the other project waits for its upload's check, and for its job."""
TARGETS = {"ttft_ratio": "at most 3", "api_mib": "at most 600", "engine_restarts": "0"}


def main() -> None:
    """Exit with 1 if the other project's upload or job did not end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", choices=[[], *ATTACKS], default=[])
    options = parser.parse_args()
    settings = Settings()
    results: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="toque-bench-") as folder,
        running_service(settings, Path(folder)) as service,
    ):
        service.await_ready(lambda _: None)
        attacker, neighbour = (create_project(service, name) for name in ("attacker", "neighbour"))
        side = Neighbour(service, neighbour, Catalogue(settings).engine_base.name)
        side.stream(3)  # whatever is only slow the first time
        for name in options.attacks or ATTACKS:
            idle = percentile(side.stream(STREAMS), 95)
            with _attacking(name, f"{service.address}/v1", attacker):
                results[name] = side.measure(idle)
            progress(f"{name}: {results[name]}")
            _cancel_jobs(service, attacker)
    worst = {field: max(found[field] for found in results.values()) for field in TARGETS}
    print(json.dumps({"attacks": results, **worst, "targets": TARGETS}))
    if any(found["job_seconds"] is None for found in results.values()):
        raise SystemExit(1)


class Neighbour:
    """The project that works while another attacks."""

    def __init__(self, service: ServiceProcess, key: str, base: str) -> None:
        self._client = OpenAI(base_url=f"{service.address}/v1", api_key=key, timeout=120)
        self._base = base
        children = psutil.Process(service.process.pid).children(recursive=True)
        self._api = next(child for child in children if "api" in child.cmdline())
        self._service = psutil.Process(service.process.pid)

    def measure(self, idle: float) -> dict[str, Any]:
        """Work, and return what the attack cost."""
        engines, lines = self._engines(), _lines()
        with _largest_memory(self._api) as memory:
            began = time.monotonic()
            file = self._client.files.create(file=("soups.jsonl", lines), purpose="fine-tune").id
            checked = self._await(lambda: self._client.files.retrieve(file).status == "processed", began)
            beside = percentile(self.stream(STREAMS), 95)
            began = time.monotonic()
            method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}
            job = self._client.fine_tuning.jobs.create(model=self._base, training_file=file, method=method).id
            trained = self._await(
                lambda: self._client.fine_tuning.jobs.retrieve(job).status == "succeeded", began
            )
        return {
            "idle_ttft_ms": round(idle),
            "ttft_ms": round(beside),
            "ttft_ratio": round(beside / idle, 2),
            "api_mib": round(memory[0] / 2**20),
            "engine_restarts": len(self._engines() - engines),
            "check_seconds": checked,
            "job_seconds": trained,
        }

    def stream(self, count: int) -> list[float]:
        """Return the milliseconds to the first token of streams that begin a second apart."""
        found: list[float] = []
        for number in range(count):
            started = time.perf_counter()
            messages: Any = [{"role": "user", "content": f"Which soup is number {number} at {started}?"}]
            stream = self._client.chat.completions.create(
                model=self._base, messages=messages, max_tokens=STREAM_TOKENS, stream=True
            )
            first = None
            for chunk in stream:
                if first is None and chunk.choices and chunk.choices[0].delta.content:
                    first = time.perf_counter() - started
            found.append((first or time.perf_counter() - started) * 1000)
            time.sleep(max(0.0, started + 1.0 - time.perf_counter()))
        return found

    def _await(self, is_done: Any, began: float) -> float | None:
        """Return how many seconds it took, or None if it takes longer than one waits."""
        while not is_done():
            if time.monotonic() - began > PATIENCE_SECONDS:
                return None
            time.sleep(0.2)
        return round(time.monotonic() - began, 1)

    def _engines(self) -> set[int]:
        found: set[int] = set()
        for child in self._service.children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                if "VLLM::EngineCore" in " ".join(child.cmdline()):
                    found.add(child.pid)
        return found


def _lines() -> bytes:
    """Return a dataset that was never uploaded before."""
    turns = [
        [
            {"role": "user", "content": f"Soup {number} of {time.time_ns()}?"},
            {"role": "assistant", "content": "Leek."},
        ]
        for number in range(12)
    ]
    return "".join(json.dumps({"messages": each}) + "\n" for each in turns).encode()


def _cancel_jobs(service: ServiceProcess, key: str) -> None:
    """Cancel what an attack has left, so that the next one is measured alone."""
    client = OpenAI(base_url=f"{service.address}/v1", api_key=key)
    for job in client.fine_tuning.jobs.list(limit=100):
        if job.status in ("validating_files", "queued", "running"):
            with suppress(ConflictError):  # it has just ended
                client.fine_tuning.jobs.cancel(job.id)


@contextmanager
def _attacking(name: str, base_url: str, key: str) -> Generator[None]:
    """Attack from another process until the block ends."""
    process = multiprocessing.get_context("spawn").Process(
        target=benchmarks.hostile.attack, args=(name, base_url, key)
    )
    process.start()
    try:
        yield
        if not process.is_alive():
            raise RuntimeError(f"{name} has ended by itself")
    finally:
        process.kill()
        process.join()


@contextmanager
def _largest_memory(process: psutil.Process) -> Generator[Sequence[int]]:
    """Watch the resident memory of a process; the list's one value is the largest that was seen, in bytes."""
    largest, ended = [process.memory_info().rss], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            largest[0] = max(largest[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield largest
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main()
