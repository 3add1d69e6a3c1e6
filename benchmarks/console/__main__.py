"""The console with much data: `python -m benchmarks.console [--rounds 7] [--seconds 15] [--sqlite]`.

`toque api` as a process, on PostgreSQL or SQLite, has a project with 10,000 jobs (200 with a log, one of
100,000 steps), 1,000 models, 200 aliases and comparisons, and a dataset of 1 GB, uploaded and checked by the
service itself. Measured are

- each page's first byte, over 60 requests in which the pages take turns;
- what a page weighs in an empty project: HTML, CSS and JavaScript as sent. A page that needs something to
  show is weighed with it;
- a job's answer and a chat completion from an engine that answers at once, each asked 20 times a second,
  with eight pages open in browsers against none, in turns. Meanwhile a job takes a step and a comparison gets
  an answer every second, on either side, so that the pages ask again and again;
- the job of 100,000 steps in Chromium, from its points to the painted pictures.

The last line is one JSON object; the exit status is 1 unless all targets are met.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from app.auth import service as auth_service
from app.core.database import Database
from benchmarks.console import callers, drawing, rows
from benchmarks.console.dataset import await_check, upload, write_dataset
from benchmarks.console.deployment import Service, running_service
from benchmarks.console.pages import first_bytes, pages_of, weights
from benchmarks.postgresql import execute, postgresql
from benchmarks.rounds import print_medians
from benchmarks.serving.deployment import API_KEY, Deployment, create_deployment
from benchmarks.serving.measurements import progress

FIRST_BYTE_MS, WEIGHT_KB, DRAWN_MS, SLOWER = 150, 150, 200, 1.05
EMPTY_KEY = "sk-toque-benchmark-of-an-empty-project"
OPENED = (
    "overview",
    "datasets",
    "jobs",
    "job that trains",
    "job that trains",
    "comparison that runs",
    "aliases",
    "machines",
)
OPEN, CLOSED = "console open", "nobody looks"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each side in a round")
    parser.add_argument("--megabytes", type=int, default=1000, help="the dataset's size")
    parser.add_argument("--sqlite", action="store_true", help="in place of PostgreSQL")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="toque-bench-")))
        url = "" if options.sqlite else stack.enter_context(postgresql())
        if url:
            execute(url.format("postgres"), "CREATE DATABASE console")
        limit = 2 * options.megabytes * 10**6
        deployment = create_deployment(folder / "data", url.format("console"), max_file_bytes=limit)
        database = Database(deployment.settings.sqlalchemy_url)
        stack.callback(database.dispose)
        summary = measure(deployment, database, folder, options)
    summary["database"] = "sqlite" if options.sqlite else "postgresql"
    summary["load_average"] = round(os.getloadavg()[0], 1)
    print(json.dumps(summary))
    sys.exit(not summary["passed"])


def measure(
    deployment: Deployment, database: Database, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    began = time.monotonic()
    made = rows.build(database, deployment.base.name)
    if not options.sqlite:
        execute(deployment.settings.sqlalchemy_url, "VACUUM ANALYZE")  # as autovacuum does within minutes
    progress(f"rows made in {time.monotonic() - began:.0f} s")
    empty = _empty_project(database)
    with running_service(deployment, API_KEY) as service:
        file_id, check_seconds = _add_dataset(service, folder, options.megabytes)
        pages = pages_of(made, file_id, 100 * options.megabytes)
        cookie = service.sign_in()
        bytes_ms = first_bytes(service.url, cookie, pages)
        progress(f"first bytes: {bytes_ms}")
        weight = weights(service.url, cookie, pages) | weights(service.url, service.sign_in(empty), pages)
        drawn = drawing.measure(service.url, cookie, pages["job of 100,000 steps"])
        progress(f"weights: {weight}; drawing: {drawn}")
        results, asked = _take_turns(service, database, pages, made, options)
    _print_pages(bytes_ms, weight)
    middle = print_medians(results)
    slower = {name: round(middle[OPEN][name] / value, 3) for name, value in middle[CLOSED].items()}
    slowest = max(each["p95"] for each in bytes_ms.values())
    heaviest = max(weight.values())
    passed = (
        slowest <= FIRST_BYTE_MS
        and heaviest <= WEIGHT_KB
        and drawn["drawn"][0] < DRAWN_MS
        and max(slower["job p95"], slower["chat p95"]) <= SLOWER
    )
    return {
        "passed": passed,
        "slowest_page_p95_ms": slowest,
        "heaviest_page_kb": heaviest,
        "drawn_ms": drawn,
        "open_against_closed": slower,
        "pages_ms": bytes_ms,
        "pages_kb": weight,
        "medians": middle,
        "asked_by_pages": asked,
        "check_seconds": round(check_seconds, 1),
        "megabytes": options.megabytes,
        "rounds": options.rounds,
    }


def _empty_project(database: Database) -> str:
    with database.writer() as session:
        project = auth_service.create_project(session, "empty")
        return auth_service.create_key(session, project.id, "empty", role="admin", secret=EMPTY_KEY)[1]


def _add_dataset(service: Service, folder: Path, megabytes: int) -> tuple[str, float]:
    path = folder / "large.jsonl"
    write_dataset(path, megabytes)
    with service.api() as api:
        file_id = upload(api, path)
        seconds = await_check(api, file_id)
    progress(f"the service has checked {megabytes} MB in {seconds:.0f} s")
    return file_id, seconds


def _take_turns(
    service: Service,
    database: Database,
    pages: dict[str, str],
    made: rows.Made,
    options: argparse.Namespace,
) -> tuple[dict[str, list[dict[str, float]]], list[int]]:
    opened = [pages[name] for name in OPENED]
    results: dict[str, list[dict[str, float]]] = {CLOSED: [], OPEN: []}
    asked: list[int] = []
    with callers.work(database):
        for number in range(options.rounds):
            for side in (CLOSED, OPEN) if number % 2 else (OPEN, CLOSED):
                with ExitStack() as stack:
                    if side == OPEN:
                        stack.enter_context(callers.visitors(service, opened, asked))
                        time.sleep(3)  # until the pages are open
                    results[side].append(callers.measure(service, made.jobs[0], made.model, options.seconds))
                progress(f"{number + 1}/{options.rounds} {side}: {results[side][-1]}")
    return results, asked


def _print_pages(bytes_ms: dict[str, dict[str, float]], weight: dict[str, float]) -> None:
    table = Table("page", "first byte: median", "p95, ms", "KB")
    for name, taken in bytes_ms.items():
        table.add_row(name, f"{taken['p50']:.1f}", f"{taken['p95']:.1f}", f"{weight.get(name, 0):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
