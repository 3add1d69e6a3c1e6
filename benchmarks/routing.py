"""Where gateways send requests: how often adapters are loaded for it, and how evenly engines are used.

    python -m benchmarks.routing [--rounds 3] [--seconds 20]

Four gateway processes, each with the real `Replicas` on one database, ask eight stand-in engines on real
sockets for 200 adapters, whose popularity follows Zipf's law with exponent 1. Each gateway has 32 requests in
flight. An engine keeps 16 adapters in memory, as ours do, takes 50 ms to load another, and answers after half
a second on average (exponentially distributed). It reports as ours do.

The policy of before, `WarmOrIdlest`, takes turns with ours in every round. Both are given ten seconds before
each measurement. Reported are medians of rounds: adapters loaded in 1,000 requests; in flight, the busiest
engine's mean over the mean of all, and the same of whichever is the busiest at the moment.

Choosing is timed alone, with 1,000 replicas and 100,000 adapters, and so is what a gateway does once in a
second to follow 1,000 engines, all of which have just reported. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import accumulate, count
from pathlib import Path
from typing import TypeVar

from aiohttp import web
from pydantic import SecretStr
from sqlalchemy import delete

from app.completions.models import Engine as EngineRow
from app.completions.placement import Placement
from app.completions.replica import Replica
from app.completions.replicas import Replicas
from app.core.database import Database, database_now
from app.core.migrations import upgrade
from app.core.settings import EngineAddress, Settings
from benchmarks.rounds import print_medians
from workers.device import cpu
from workers.inference.engine_load import Load
from workers.inference.registration import Registration

ROOT = Path(__file__).resolve().parent.parent
GATEWAYS, ENGINES, ADAPTERS, IN_FLIGHT = 4, 8, 200, 32
RESIDENT, LOAD_SECONDS, ANSWER_SECONDS, REPORT_SECONDS = 16, 0.05, 0.5, 2.0
WARM_UP_SECONDS = 10.0
SAMPLE_SECONDS = 0.05
BASE = "base"
OURS, BEFORE = "homes", "warm or idlest"

T = TypeVar("T")


class Popular:
    """Adapters drawn by Zipf's law."""

    def __init__(self, adapters: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._sums = list(accumulate(1 / rank for rank in range(1, adapters + 1)))

    def draw(self) -> str:
        return f"ft:{BASE}:p::{bisect(self._sums, self._random.random() * self._sums[-1])}"


class WarmOrIdlest(Replicas):
    """The policy of before: the idlest replica that this gateway knows to hold the adapter, or the idlest."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings, database)
        self._warm: defaultdict[Replica, OrderedDict[str, None]] = defaultdict(OrderedDict)
        self._turns: defaultdict[Replica, int] = defaultdict(int)
        self._turn = count(1)

    async def choose(self, base_model: str, key: str, *, exclude: Collection[Replica] = ()) -> Replica:
        def load(replica: Replica) -> tuple[int, int]:
            return replica.in_flight, self._turns[replica]

        ready = self.ready(base_model, exclude)
        idlest = min(ready, key=load)
        warm = [replica for replica in ready if key in self._warm[replica]]
        best = min(warm, key=load) if warm else idlest
        chosen = best if best.in_flight <= idlest.in_flight + 8 else idlest
        self._turns[chosen] = next(self._turn)
        return chosen

    async def ask(self, base_model: str, key: str, send: Callable[[Replica], Awaitable[T]]) -> T:
        async def send_and_remember(replica: Replica) -> T:
            answer = await send(replica)
            warm = self._warm[replica]
            warm[key] = None
            warm.move_to_end(key)
            if len(warm) > RESIDENT:
                warm.popitem(last=False)
            return answer

        return await super().ask(base_model, key, send_and_remember)


class Engine:
    """Stands in for an engine: only what takes time, and what is in memory."""

    def __init__(self, number: int) -> None:
        self._random = random.Random(number)
        self._resident: OrderedDict[str, None] = OrderedDict()
        self.in_flight = self.loads = self.answers = 0

    def load(self) -> Load:
        return Load(self.in_flight, list(self._resident))

    async def answer(self, request: web.Request) -> web.Response:
        self.in_flight += 1
        try:
            await asyncio.sleep(self._take_up(str((await request.json())["model"])))
        finally:
            self.in_flight -= 1
            self.answers += 1
        return web.Response(body=b"{}")

    def _take_up(self, adapter: str) -> float:
        """Returns how long the answer takes, with the adapter's loading."""
        seconds = self._random.expovariate(1 / ANSWER_SECONDS)
        if adapter not in self._resident:
            self.loads += 1
            seconds += LOAD_SECONDS
        self._resident[adapter] = None
        self._resident.move_to_end(adapter)
        if len(self._resident) > RESIDENT:
            self._resident.popitem(last=False)
        return seconds


async def run_engines(url: str, folder: str) -> None:
    """Serves all engines, and prints what they did each time that a line is read."""
    engines = [Engine(number) for number in range(ENGINES)]
    for number, engine in enumerate(engines):
        app = web.Application()
        app.router.add_post("/v1/completions", engine.answer)
        app.router.add_get("/health", lambda _: web.Response())
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.UnixSite(runner, f"{folder}/{number}.sock").start()
    database = Database(url)
    rows = [Registration(database, BASE, cpu(), "0", Settings().heartbeat_seconds) for _ in engines]
    for number, row in enumerate(rows):
        row.report("ready", "", f"unix:{folder}/{number}.sock", "key")

    async def report() -> None:
        while True:
            for engine, row in zip(engines, rows, strict=True):
                await asyncio.sleep(REPORT_SECONDS / ENGINES)
                await asyncio.to_thread(row.report_load, engine.load())

    sums, busiest, samples = [0] * ENGINES, 0, 0

    async def sample() -> None:
        nonlocal busiest, samples
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            now = [engine.in_flight for engine in engines]
            sums[:] = map(sum, zip(sums, now, strict=True))
            busiest += max(now)
            samples += 1

    tasks = [asyncio.create_task(each) for each in (report(), sample())]
    while await asyncio.to_thread(sys.stdin.readline):
        loads, answers = sum(each.loads for each in engines), sum(each.answers for each in engines)
        print(json.dumps([loads, answers, busiest, samples, *sums]), flush=True)
    for task in tasks:
        task.cancel()


async def run_gateway(url: str, policy: str, seed: str) -> None:
    replicas = (Replicas if policy == OURS else WarmOrIdlest)(Settings(), Database(url))
    await replicas.refresh()
    following = asyncio.create_task(replicas.run())

    async def ask_on(task: int) -> None:
        adapters = Popular(ADAPTERS, int(seed) * 1000 + task)
        while not following.done():
            adapter = adapters.draw()

            async def send(replica: Replica, body: bytes = b'{"model": "%s"}' % adapter.encode()) -> bytes:
                answer = await replica.connection.post("/v1/completions", body)
                return await replica.connection.read_all(answer)

            await replicas.ask(BASE, adapter, send)

    await asyncio.gather(*(ask_on(task) for task in range(IN_FLIGHT)))


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.routing", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def measure(policy: str, seconds: float, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="toque-bench-", dir="/tmp") as folder:
        url = f"sqlite:///{folder}/toque.db"
        upgrade(url)
        with child("engines", url, folder) as engines:
            read_counts(engines)  # once they have registered
            gateways = [child("gateway", url, policy, str(seed + number)) for number in range(GATEWAYS)]
            processes = [gateway.__enter__() for gateway in gateways]
            try:
                time.sleep(WARM_UP_SECONDS)
                before = read_counts(engines)
                time.sleep(seconds)
                after = read_counts(engines)
                assert all(process.poll() is None for process in processes), "a gateway has ended"
            finally:
                for gateway in gateways:
                    gateway.__exit__(None, None, None)
    loads, answers, busiest, _, *sums = (now - then for now, then in zip(after, before, strict=True))
    mean = sum(sums) / ENGINES
    return {
        "loads_per_1000": 1000 * loads / answers,
        "max_over_mean": max(sums) / mean,
        "momentary_max_over_mean": busiest / mean,
        "requests_per_second": answers / seconds,
    }


def read_counts(engines: subprocess.Popen[str]) -> list[int]:
    assert engines.stdin is not None
    assert engines.stdout is not None
    engines.stdin.write("\n")
    engines.stdin.flush()
    return json.loads(engines.stdout.readline())


def time_choosing(replicas: int = 1000, adapters: int = 100_000, rounds: int = 15) -> list[float]:
    """Returns the processor's microseconds to choose for a request and to count it, by round."""
    address = EngineAddress(base_model=BASE, url="unix:/nowhere", api_key=SecretStr(""))
    placement, popular = Placement(), Popular(adapters, seed=0)
    placement.update(Replica(f"engine_{number}", address, 1.0, is_ours=True) for number in range(replicas))
    times: list[float] = []
    for _ in range(rounds):
        keys = [popular.draw() for _ in range(4000)]
        began = time.process_time()  # which other processes do not lengthen
        for key in keys:
            replica = placement.choose(key)
            assert replica is not None
            with placement.serving(replica):
                pass
        times.append((time.process_time() - began) / len(keys) * 1e6)
    return times


def time_following(engines: int = 1000, rounds: int = 5) -> list[float]:
    """Returns the milliseconds that it takes to read the reports of all engines and to take them over."""
    with tempfile.TemporaryDirectory(prefix="toque-bench-", dir="/tmp") as folder:
        database = Database(f"sqlite:///{folder}/toque.db")
        upgrade(database.url)
        names = [f"ft:{BASE}:project::{number:024}" for number in range(RESIDENT)]
        replicas = Replicas(Settings(), database)

        async def follow() -> float:
            with database.writer() as session:
                session.execute(delete(EngineRow))
                session.add_all(_reported(number, names) for number in range(engines))
            began = time.perf_counter()
            await replicas.refresh()
            return (time.perf_counter() - began) * 1000

        async def follow_often() -> list[float]:
            times = [await follow() for _ in range(rounds + 1)]
            await replicas.close()
            return times[1:]

        times = asyncio.run(follow_often())
        database.dispose()
        return times


def _reported(number: int, adapters: list[str]) -> EngineRow:
    return EngineRow(
        id=f"engine_{number:024}",
        base_model=BASE,
        url=f"http://engine-{number}:8001",
        api_key="k" * 43,
        status="ready",
        device="cuda",
        version="0",
        started_at=0.0,
        heartbeat_at=database_now(),
        requests=number % 8,
        adapters=adapters,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="each measurement, after its warm-up")
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {BEFORE: [], OURS: []}
    times = {"choosing_us": time_choosing(), "following_ms": time_following()}
    for number in range(options.rounds):
        for policy, measured in results.items():
            measured.append(measure(policy, options.seconds, seed=number * GATEWAYS))
            print(f"{number + 1}/{options.rounds} {policy}: {measured[-1]}", file=sys.stderr, flush=True)
    report(results, times)


def report(results: dict[str, list[dict[str, float]]], times: dict[str, list[float]]) -> None:
    middle = print_medians(results)
    loads = middle[OURS]["loads_per_1000"] / middle[BEFORE]["loads_per_1000"]
    summary = {
        "loads_ratio": round(loads, 3),
        "max_over_mean": middle[OURS]["max_over_mean"],
        **{name: round(statistics.median(values), 1) for name, values in times.items()},
        **{
            f"{name}_lowest_and_highest": [round(min(values), 1), round(max(values), 1)]
            for name, values in times.items()
        },
        "medians": middle,
        "rounds": len(results[OURS]),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    children = {"engines": run_engines, "gateway": run_gateway}
    if len(sys.argv) > 1 and sys.argv[1] in children:
        asyncio.run(children[sys.argv[1]](*sys.argv[2:]))
    else:
        main()
