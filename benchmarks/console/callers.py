"""What the API's other callers wait, while nobody or several people look at the console."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from sqlalchemy import update

from app.comparisons.models import Comparison
from app.core.database import Database
from app.fine_tuning.models import Event, FineTuningJob
from benchmarks.console.comparison_rows import ASKED
from benchmarks.console.deployment import Service
from benchmarks.console.rows import LIVE, step_metrics
from benchmarks.serving.measurements import percentile

_EVERY_SECONDS = 0.05
_WARM_UP_SECONDS = 3.0
_NICE = 10
_TOTAL = 100_000


def measure(service: Service, job: str, model: str, seconds: float) -> dict[str, float]:
    """Returns the percentiles of two requests in milliseconds; each is asked 20 times a second."""
    return asyncio.run(_measure(service, job, model, seconds))


async def _measure(service: Service, job: str, model: str, seconds: float) -> dict[str, float]:
    body = {"model": model, "messages": [{"role": "user", "content": "May I return it?"}]}
    headers = {"authorization": f"Bearer {service.key}"}
    async with aiohttp.ClientSession(service.url, headers=headers) as session:
        job_times, chat_times = await asyncio.gather(
            _ask_often(session, "GET", f"/v1/fine_tuning/jobs/{job}", None, seconds),
            _ask_often(session, "POST", "/v1/chat/completions", body, seconds),
        )
    return {
        f"{name} p{percent}": percentile(times, percent)
        for name, times in (("job", job_times), ("chat", chat_times))
        for percent in (50, 95)
    }


async def _ask_often(
    session: aiohttp.ClientSession, method: str, path: str, body: object, seconds: float
) -> list[float]:
    """Asks at fixed times, however long an answer takes; a request's time runs from when it was due."""
    loop = asyncio.get_running_loop()
    began = loop.time() + random.random() * _EVERY_SECONDS

    async def ask(due: float) -> float:
        await asyncio.sleep(due - loop.time())
        async with session.request(method, path, json=body) as answer:
            answer.raise_for_status()
            await answer.read()
        return (loop.time() - due) * 1000

    count = int((seconds + _WARM_UP_SECONDS) / _EVERY_SECONDS)
    times = await asyncio.gather(*(ask(began + number * _EVERY_SECONDS) for number in range(count)))
    return times[int(_WARM_UP_SECONDS / _EVERY_SECONDS) :]


@contextmanager
def visitors(service: Service, paths: list[str], asked: list[int]) -> Iterator[None]:
    """Has each path open in a browser; adds the number of what these asked for.

    Browsers run elsewhere, so theirs is nice: what they compute must not slow those who are measured.
    """
    command = ["nice", f"-n{_NICE}", sys.executable, "-m", "benchmarks.console.visitors", service.url, *paths]
    process = subprocess.Popen(
        command,
        env=os.environ | {"TOQUE_BENCHMARK_COOKIE": service.sign_in()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield
    except BaseException:
        process.kill()
        raise
    finally:
        out, _ = process.communicate("\n")
    assert process.returncode == 0
    asked.append(sum(json.loads(out).values()))


@contextmanager
def work(database: Database) -> Iterator[None]:
    """Records a step of the running job, and an answer of the comparison, every second."""
    is_over = threading.Event()
    thread = threading.Thread(target=_work, args=(database, is_over))
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _work(database: Database, is_over: threading.Event) -> None:
    chance = random.Random(1)
    while not is_over.wait(1.0):
        with database.writer() as session:
            job = session.get_one(FineTuningJob, LIVE)
            job.recorded_step += 1
            job.estimated_finish = time.time() + 3600
            metrics = step_metrics(chance, job.recorded_step, _TOTAL)
            message = f"Step {job.recorded_step}/{_TOTAL}"
            session.add(Event(job_id=LIVE, level="info", type="metrics", message=message, data=metrics))
            session.execute(update(Comparison).where(Comparison.id == ASKED).values(done=Comparison.done + 1))
