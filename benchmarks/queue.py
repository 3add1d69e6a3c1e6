"""Our queue against Procrastinate's: jobs per second with eight workers, on the same PostgreSQL server.

    python -m benchmarks.queue [--rounds 3] [--seconds 4]

A job does nothing; what is measured is what the queue does for it. On both sides every step is a transaction
of its own, nothing is deleted, and each round starts on a new database with its jobs waiting.

Ours: eight processes, as `toque worker` is one, each around the calls of `workers.training.worker`: claim
(projects take turns; an event), heartbeat (the lease, fenced), success (fenced; two events). A process that
is told there is no job sleeps `poll_seconds`, as a worker does.

Procrastinate: a worker with an asynchronous no-op, once as eight processes and once as one process with
`concurrency=8`; the faster of the two counts. For each job it fetches and finishes (an event each, by
triggers). Its heartbeat is one per worker every ten seconds, so it is spared ours; `ratio_with_heartbeat`
is against the same with a job that reports its worker's heartbeat once, which is what each of our jobs does.

The backlog: eight of our workers while 100 jobs of 20 projects wait, while 100,000 wait, and while 100,000
wait beside 100,000 finished ones; what is finished is replaced every few milliseconds, so the number stays.

The idle: eight of our workers beside 10,000 projects without waiting jobs, each of which has run ten, and
200 workers that wait for a job on a base model that nobody asks for, as `workers.training.idleness` does.

The cases take turns in every round. The last line is one JSON object; the ratios are quotients of
medians.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from app.core.database import Database, new_id
from app.core.migrations import upgrade
from app.core.settings import Settings
from app.fine_tuning import queue
from app.fine_tuning.claim import claim_next
from benchmarks.postgresql import execute, postgresql, sqlalchemy_url
from workers.training.idleness import Idleness

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 8
PROJECTS = 20
BASE = "smollm2-135m-instruct"
WARM_UP = 50 * WORKERS

PROJECTS_AND_A_FILE = f"""
INSERT INTO projects (id, name, title, created_at)
  SELECT 'proj_' || n, 'project-' || n, '', 0 FROM generate_series(0, {PROJECTS - 1}) n;
INSERT INTO files (id, project_id, filename, purpose, bytes, sha256, storage_key, created_at)
  VALUES ('file-0', 'proj_0', 'f', 'fine-tune', 1, '', 'f', 0);
"""
IDLE_PROJECTS = f"""
WITH idle AS (
  INSERT INTO projects (id, name, title, created_at)
    SELECT 'proj_idle_' || n, 'idle-' || n, '', 0 FROM generate_series(1, %(projects)s) n RETURNING id
)
INSERT INTO fine_tuning_jobs
  (id, project_id, status, model, training_file_id, seed, method, hyperparameters, created_at, lease_epoch,
   started_at, finished_at, fine_tuned_model, result_file_id)
  SELECT 'ftjob-' || id || '-' || n, id, 'succeeded', '{BASE}', 'file-0', 0, 'supervised', '{{}}', 0, 1, 0, 0,
    'ft:' || id || '-' || n, 'file-0'
  FROM idle, generate_series(1, 10) n
"""
QUEUE_JOBS = f"""
INSERT INTO fine_tuning_jobs
  (id, project_id, status, model, training_file_id, seed, method, hyperparameters, created_at, lease_epoch)
  SELECT 'ftjob-' || lpad(n::text, 24, '0'), 'proj_' || mod(n, {PROJECTS}), 'queued', '{BASE}', 'file-0', 0,
    'supervised',
    '{{"n_epochs": 3, "batch_size": 8, "learning_rate": 0.001, "lora_rank": 16, "lora_alpha": 32}}', n, 0
  FROM generate_series(%s::bigint, %s::bigint) n
"""
FINISH_ALL = """
UPDATE fine_tuning_jobs SET status = 'succeeded', lease_epoch = 1, started_at = created_at,
  finished_at = created_at, fine_tuned_model = 'ft:' || id, result_file_id = 'file-0'
"""


@dataclass(frozen=True)
class Case:
    """One measurement: a child's arguments, the number of children, and the number of waiting jobs."""

    name: str
    side: str
    children: int
    waiting: int
    arguments: tuple[str, ...] = ()
    finished: int = 0
    refilled: bool = False
    idle_projects: int = 0
    pollers: int = 0


TOQUE = "toque"
PROCESSES = "procrastinate, 8 processes"
CONCURRENCY = "procrastinate, concurrency 8"
HEARTBEAT = "procrastinate, 8 processes, a heartbeat a job"
FEW = "toque, few waiting"
MANY = "toque, many waiting"
BESIDE_IDLE = "toque, beside idle projects and workers"
MANY_AND_FINISHED = "toque, many waiting, many finished"


def cases(waiting: int, backlog: int) -> list[Case]:
    return [
        Case(TOQUE, "toque", WORKERS, waiting),
        Case(BESIDE_IDLE, "toque", WORKERS, waiting, idle_projects=10_000, pollers=200),
        Case(PROCESSES, "procrastinate", WORKERS, waiting, ("1",)),
        Case(CONCURRENCY, "procrastinate", 1, waiting, (f"{WORKERS}",)),
        Case(HEARTBEAT, "procrastinate", WORKERS, waiting, ("1", "heartbeat")),
        Case(FEW, "toque", WORKERS, 100, refilled=True),
        Case(MANY, "toque", WORKERS, backlog, refilled=True),
        Case(MANY_AND_FINISHED, "toque", WORKERS, backlog, finished=backlog, refilled=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="each measurement, after its warm-up")
    parser.add_argument("--waiting", type=int, default=20_000, help="jobs queued on each side")
    parser.add_argument("--backlog", type=int, default=100_000)
    options = parser.parse_args()

    rates: dict[str, list[float]] = {}
    loads = [os.getloadavg()[0]]
    with postgresql() as server:
        for side, install in (("toque", install_toque), ("procrastinate", install_procrastinate)):
            execute(server.format("postgres"), f"CREATE DATABASE {side}")
            install(server.format(side))
        for number in range(options.rounds):
            for case in cases(options.waiting, options.backlog):
                rate = measure(server, case, options.seconds)
                rates.setdefault(case.name, []).append(rate)
                print(
                    f"{number + 1}/{options.rounds} {case.name}: {rate:.0f} jobs/s",
                    file=sys.stderr,
                    flush=True,
                )
            loads.append(os.getloadavg()[0])
    report(rates, loads)


def install_toque(url: str) -> None:
    upgrade(sqlalchemy_url(url))
    execute(url, PROJECTS_AND_A_FILE)


def install_procrastinate(url: str) -> None:
    with procrastinate_app(url).open() as app:
        app.schema_manager.apply_schema()


def measure(server: str, case: Case, seconds: float) -> float:
    """Returns the jobs finished per second, on a new database."""
    execute(server.format("postgres"), f"CREATE DATABASE measured TEMPLATE {case.side}")
    url = server.format("measured")
    {"toque": fill_toque, "procrastinate": fill_procrastinate}[case.side](url, case)
    execute(url, "VACUUM ANALYZE")
    execute(url, "CHECKPOINT")
    # Every child writes a byte into the one pipe when it is ready, and one for each job that it has done.
    done, child_end = os.pipe()
    commands = [[case.side, url, *case.arguments]] * case.children
    if case.pollers:
        commands.append(["poller", url, str(case.pollers)])
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.queue", *command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=child_end,
        )
        for command in commands
    ]
    os.close(child_end)
    for _ in children:
        assert os.read(done, 1), "a worker has ended"
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
    with psycopg.connect(url, autocommit=True) as connection:
        made = case.finished + case.waiting

        def follow(enough: Callable[[int], bool]) -> int:
            nonlocal made
            finished = 0
            while not enough(finished):
                finished += (count := len(os.read(done, 65536)))
                assert count, "every worker has ended"
                if case.refilled:
                    connection.execute(QUEUE_JOBS, (made + 1, made + count))
                    made += count
                time.sleep(0.01)
            return finished

        follow(lambda finished: finished >= WARM_UP)
        began = time.perf_counter()
        finished = follow(lambda _: time.perf_counter() - began >= seconds)
        elapsed = time.perf_counter() - began
    for child in children:
        child.terminate()
    for child in children:
        child.wait()
    os.close(done)
    assert case.refilled or finished < case.waiting - WARM_UP - 1000, "the jobs nearly ran out: queue more"
    execute(server.format("postgres"), "DROP DATABASE measured WITH (FORCE)")
    return finished / elapsed


def fill_toque(url: str, case: Case) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(IDLE_PROJECTS, {"projects": case.idle_projects})
        connection.execute(QUEUE_JOBS, (1, case.finished))
        connection.execute(FINISH_ALL)
        connection.execute(QUEUE_JOBS, (case.finished + 1, case.finished + case.waiting))


def fill_procrastinate(url: str, case: Case) -> None:
    name = case.arguments[-1] if case.arguments[-1] == "heartbeat" else "nothing"
    with procrastinate_app(url).open() as app:
        app.configure_task(name).batch_defer(*({} for _ in range(case.waiting)))


def toque_child(url: str) -> None:
    """Runs the transactions of `workers.training.worker`, with nothing in between."""
    settings = Settings()
    database = Database(sqlalchemy_url(url))
    worker_id = new_id("worker_")
    wait_for_all()
    while True:
        with database.writer() as session:
            job = claim_next(
                session,
                worker_id,
                [BASE],
                settings.lease_seconds,
                running_limit=settings.max_running_jobs_per_project,
            )
        if job is None:
            time.sleep(settings.poll_seconds)
            continue
        lease = queue.LEASES.lease_of(job)
        with database.writer() as session:
            queue.LEASES.renew(session, lease, settings.lease_seconds)
        with database.writer() as session:
            queue.succeed(
                session,
                lease,
                fine_tuned_model=f"ft:{job.id}",
                trained_tokens=0,
                result_file_id="file-0",
            )
        os.write(1, b".")


def poller_child(url: str, count: str) -> None:
    """Runs so many workers that find no job, each on a thread of its own."""
    settings = Settings()
    database = Database(sqlalchemy_url(url))

    def poll(idleness: Idleness, worker_id: str) -> None:
        with idleness.notifications:
            while True:
                with database.writer() as session:
                    assert claim_next(session, worker_id, ["unasked"], settings.lease_seconds) is None
                    seconds = idleness.seconds(session, ["unasked"])
                idleness.wait(seconds)

    for _ in range(int(count)):  # one after another, as all at once would wait for the pool of connections
        idleness = Idleness(settings, database)
        Thread(target=poll, args=(idleness, new_id("worker_")), daemon=True).start()
        while not idleness.notifications.arrive:
            time.sleep(0.01)
    wait_for_all()
    Event().wait()


def procrastinate_app(url: str, concurrency: int = 1) -> Any:
    import procrastinate

    logging.getLogger("procrastinate").setLevel(logging.ERROR)  # it warns of an app in the main module
    # As many connections as jobs at once, and one each to fetch, to listen and for the heartbeat.
    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=concurrency + 3)
    app = procrastinate.App(connector=connector)

    @app.task(name="nothing")
    async def nothing() -> None:
        os.write(1, b".")

    @app.task(name="heartbeat", pass_context=True)
    async def heartbeat(context: Any) -> None:
        await context.app.job_manager.update_heartbeat(context.job.worker_id)
        os.write(1, b".")

    return app


def procrastinate_child(url: str, concurrency: str, *_: str) -> None:
    app = procrastinate_app(url, int(concurrency))
    wait_for_all()
    app.run_worker(concurrency=int(concurrency))


def wait_for_all() -> None:
    os.write(1, b"r")
    sys.stdin.read()


def report(rates: dict[str, list[float]], loads: list[float]) -> None:
    table = Table("", "jobs/s, median (lowest to highest)")
    for name, values in rates.items():
        table.add_row(name, f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})")
    Console().print(table)

    middle = {name: statistics.median(values) for name, values in rates.items()}
    theirs = max(middle[PROCESSES], middle[CONCURRENCY])
    print(
        json.dumps(
            {
                "ratio": round(middle[TOQUE] / theirs, 3),
                "ratio_with_heartbeat": round(middle[TOQUE] / middle[HEARTBEAT], 3),
                "idle_ratio": round(middle[BESIDE_IDLE] / middle[TOQUE], 3),
                "backlog_ratio": round(middle[MANY] / middle[FEW], 3),
                "backlog_and_finished_ratio": round(middle[MANY_AND_FINISHED] / middle[FEW], 3),
                "jobs_per_second": {
                    name: {
                        "median": round(middle[name], 1),
                        "lowest": round(min(values), 1),
                        "highest": round(max(values), 1),
                    }
                    for name, values in rates.items()
                },
                "workers": WORKERS,
                "rounds": len(rates[TOQUE]),
                "cores": os.cpu_count(),
                "load_average": [round(load, 1) for load in loads],
            }
        )
    )


if __name__ == "__main__":
    children = {"toque": toque_child, "procrastinate": procrastinate_child, "poller": poller_child}
    if len(sys.argv) > 1 and sys.argv[1] in children:
        children[sys.argv[1]](*sys.argv[2:])
    else:
        main()
