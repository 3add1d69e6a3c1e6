"""How fast gateways can write what was used, against the earlier way of adding to sums that they share.

    python -m benchmarks.usage [--rounds 5] [--seconds 6]

Eight gateway processes write batches to one PostgreSQL server as fast as they can. A batch has what 100
requests of one minute add up to, which are drawn by Zipf's law from 1,000 kinds: 20 projects, five keys of
each, five models, and half of the requests by an alias. Before, a batch was added to the three tables of
sums, in rows that all gateways share. Now `app.usage.entries` appends it, while another process folds what
has been appended. The two take turns in every round, each on a new database without autovacuum.

Reported are medians of rounds: the entries written in a second, the 95th percentile of the time that a batch
takes, and by 1,000 entries the row versions that became dead, those that nothing has removed yet, and the
kilobytes of the write-ahead log. Appending is charged with its folding. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate, count, islice
from pathlib import Path
from typing import Any

import psycopg

from app.core.database import Database, new_id
from app.core.migrations import upgrade
from app.usage.entries import Batch, append_batch
from app.usage.folding import add_usage, fold_entries
from app.usage.models import AliasUsage, EntryKey, KeyUsage, Sums, Usage
from benchmarks.postgresql import execute, postgresql, sqlalchemy_url
from benchmarks.rounds import print_medians

ROOT = Path(__file__).resolve().parent.parent
GATEWAYS, KINDS, REQUESTS, MINUTE = 8, 1000, 100, 1_800_000_000
WARM_UP_SECONDS = 1.0
APPENDED, SHARED = "appended", "shared sums"

PROJECTS = """
INSERT INTO projects (id, name, title, created_at)
  SELECT 'proj_' || n, 'project-' || n, '', 0 FROM generate_series(0, 19) n
"""
DEAD = """
SELECT sum(n_tup_upd + n_tup_del)::bigint, sum(n_dead_tup)::bigint, pg_current_wal_lsn() - '0/0'
  FROM pg_stat_user_tables WHERE relname LIKE '%usage%'
"""


def batches(seed: int) -> Iterator[dict[EntryKey, Sums]]:
    """Yields what a gateway has counted, again and again."""
    draw, sums = random.Random(seed), list(accumulate(1 / rank for rank in range(1, KINDS + 1)))
    while True:
        counted: defaultdict[EntryKey, Sums] = defaultdict(lambda: Sums(0, 0, 0))
        for _ in range(REQUESTS):
            kind = bisect(sums, draw.random() * sums[-1])
            project, key, model, alias = kind % 20, kind // 20 % 5, kind // 100 % 5, kind // 500 % 2
            counted[
                EntryKey(
                    f"proj_{project}",
                    MINUTE,
                    f"ft:base:project-{project}::{model}",
                    f"key_{project}_{key}",
                    f"alias-{model}" if alias else None,
                )
            ] += Sums(1, 100, 50)
        yield counted


def add_to_sums(database: Database, counted: dict[EntryKey, Sums]) -> None:
    """Adds a batch to the sums, as gateways did."""
    tables: dict[Any, defaultdict[Any, Sums]] = {
        table: defaultdict(lambda: Sums(0, 0, 0)) for table in (Usage, KeyUsage, AliasUsage)
    }
    for (project_id, minute, model, key_id, alias), sums in counted.items():
        key = (project_id, minute, model)
        tables[Usage][key] += sums
        tables[KeyUsage][*key, key_id] += sums
        if alias is not None:
            tables[AliasUsage][*key, alias] += sums
    with database.writer() as session:
        for table, rows in tables.items():
            add_usage(session, rows, table)


def run_gateway(url: str, way: str, seconds: str, seed: str) -> None:
    """Writes for that time, and prints how many entries it wrote and the seconds that each batch took."""
    database, gateway_id = Database(sqlalchemy_url(url)), new_id("gateway_")
    written, times = 0, list[float]()
    drawn = list(islice(batches(int(seed)), 200))
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    for number in count(1):
        counted, at = drawn[number % len(drawn)], time.perf_counter()
        if at - began > float(seconds):
            break
        if way == SHARED:
            add_to_sums(database, counted)
        else:
            with database.writer() as session:
                append_batch(session, Batch(gateway_id, number, counted))
        times.append(time.perf_counter() - at)
        written += len(counted)
    print(json.dumps([written, times]), flush=True)


def run_folding(url: str) -> None:
    """Folds entries until it is told to end, and then those that are left."""
    database, ends = Database(sqlalchemy_url(url)), False
    print("ready", flush=True)
    sys.stdin.readline()
    os.set_blocking(sys.stdin.fileno(), False)
    while not ends:
        ends = bool(sys.stdin.readline())
        time.sleep(0.1)
        more = True
        while more:
            with database.writer() as session:
                more = fold_entries(session, MINUTE + 600)
    print("[]", flush=True)


def child(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.usage", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "a process has ended"
    return line


def measure(server: str, way: str, seconds: float) -> dict[str, float]:
    """Returns the figures of one way, on a new database."""
    execute(server.format("postgres"), "CREATE DATABASE measured TEMPLATE toque")
    url = server.format("measured")
    execute(url, "CHECKPOINT")
    gateways = [child("gateway", url, way, str(seconds), str(seed)) for seed in range(GATEWAYS)]
    folding = [child("folding", url)] if way == APPENDED else []
    for process in (*gateways, *folding):
        hear(process)
    wal_before = read_dead(url)[2]
    for process in (*folding, *gateways):
        tell(process, "begin")
    heard = [json.loads(hear(gateway)) for gateway in gateways]
    for process in folding:
        tell(process, "end")
        hear(process)
    for process in (*gateways, *folding):
        process.communicate()
    made, left, wal = read_dead(url)
    execute(server.format("postgres"), "DROP DATABASE measured WITH (FORCE)")
    entries = sum(written for written, _ in heard)
    times = sorted(each for _, all_times in heard for each in all_times)
    return {
        "entries_per_second": entries / seconds,
        "batch_ms_95": times[len(times) * 95 // 100] * 1000,
        "dead_rows_per_1000": 1000 * made / entries,
        "dead_rows_left_per_1000": 1000 * left / entries,
        "wal_kb_per_1000": (wal - wal_before) / entries,
    }


def read_dead(url: str) -> tuple[int, int, int]:
    """Returns the row versions that became dead, those that are still there, and the log's position."""
    with psycopg.connect(url) as connection:
        row = connection.execute(DEAD).fetchone()
    assert row is not None
    made, left, log = map(int, row)
    return made, left, log


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="each measurement")
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {SHARED: [], APPENDED: []}
    loads = [os.getloadavg()[0]]
    with postgresql() as server:
        execute(server.format("postgres"), "ALTER SYSTEM SET autovacuum = off")
        execute(server.format("postgres"), "SELECT pg_reload_conf()")
        execute(server.format("postgres"), "CREATE DATABASE toque")
        upgrade(sqlalchemy_url(server.format("toque")))
        execute(server.format("toque"), PROJECTS)
        for number in range(options.rounds):
            for way, measured in results.items():
                measured.append(measure(server, way, options.seconds))
                print(f"{number + 1}/{options.rounds} {way}: {measured[-1]}", file=sys.stderr, flush=True)
            loads.append(os.getloadavg()[0])
    report(results, loads)


def report(results: dict[str, list[dict[str, float]]], loads: list[float]) -> None:
    middle = print_medians(results)
    ratios = {
        f"{name}_ratio": round(middle[APPENDED][name] / middle[SHARED][name], 3)
        for name in ("entries_per_second", "batch_ms_95", "dead_rows_per_1000", "wal_kb_per_1000")
    }
    spread = {
        way: [round(pick(each["entries_per_second"] for each in measured)) for pick in (min, max)]
        for way, measured in results.items()
    }
    print(
        json.dumps(
            {
                **ratios,
                "medians": middle,
                "entries_per_second_lowest_and_highest": spread,
                "gateways": GATEWAYS,
                "rounds": len(results[APPENDED]),
                "cores": os.cpu_count(),
                "load_average": [round(load, 1) for load in loads],
            }
        )
    )


if __name__ == "__main__":
    children = {"gateway": run_gateway, "folding": run_folding}
    if len(sys.argv) > 1 and sys.argv[1] in children:
        children[sys.argv[1]](*sys.argv[2:])
    else:
        main()
