"""Does every job end once, truthfully, whatever is killed? `python -m benchmarks.soak --minutes 10`.

Customers in two projects order jobs, cancel, pause and resume, while a process is struck every second or so:
the API, a worker, a trainer, the database server; each is started again by its supervisor. Then the blows and
the orders stop, what is left drains, and the ledger is drawn up from the database, the storage and the API.
The last line is one JSON object; the exit code is 1 where the ledger does not balance.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning.models import FINAL_STATUSES, FineTuningJob
from benchmarks.soak.chaos import Chaos
from benchmarks.soak.customer import Customer
from benchmarks.soak.deployment import running_deployment
from benchmarks.soak.ledger import audit
from benchmarks.soak.postgresql import PostgresqlServer

DRAIN_SECONDS = 120.0
"""A job that has not ended by then is lost."""
_REPORT_SECONDS = 15.0
_SHOWN_LINES = 50


def main() -> None:
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="toque-soak-"))
    started = time.monotonic()
    with ExitStack() as stack:
        server = PostgresqlServer(folder) if arguments.database == "postgresql" else None
        if server:
            stack.enter_context(server.kept_running())
        url = server.url if server else f"sqlite:///{folder / 'toque.db'}"
        deployment = stack.enter_context(running_deployment(folder, url))
        customers = [
            Customer(deployment.address, key, patient=patient)
            for key in deployment.keys.values()
            for patient in (True, False)
        ]
        chaos = Chaos(deployment.processes, server.processes if server else None)
        with ExitStack() as busy:
            for customer in customers:
                busy.enter_context(customer.ordering())
            busy.enter_context(chaos.reigning())
            _wait(arguments.minutes * 60, customers, chaos)
        print("no more orders and blows; draining", flush=True)
        drain_seconds = _drain(deployment.settings, customers)
        ledger = audit(deployment.settings, customers)
        processes = [deployment.supervisor, *deployment.supervisor.children(recursive=True)]
    _, left_behind = psutil.wait_procs(processes, timeout=5)

    for line in [*ledger.lost, *ledger.doubled, *ledger.wrong][:_SHOWN_LINES]:
        print(line)
    summary = {
        "database": arguments.database,
        "seconds": round(time.monotonic() - started),
        "accepted": ledger.accepted,
        "succeeded": ledger.ended["succeeded"],
        "failed": ledger.ended["failed"],
        "cancelled": ledger.ended["cancelled"],
        "lost": len(ledger.lost),
        "doubled": len(ledger.doubled),
        "wrong": len(ledger.wrong),
        "kills": chaos.blows.total(),
        "kills_by_kind": dict(sorted(chaos.blows.items())),
        "failed_by_code": dict(ledger.failures),
        "unanswered": ledger.unanswered,
        "resumed": ledger.resumed,
        "refused": dict(sum((customer.refusals for customer in customers), Counter[str]())),
        "drain_seconds": round(drain_seconds, 1),
        "left_behind": len(left_behind),
    }
    balanced = ledger.balanced and not left_behind
    if balanced:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"everything is kept in {folder}; what the processes said, in {folder / 'deployment.log'}")
    print(json.dumps(summary))
    sys.exit(not balanced)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    return parser.parse_args()


def _wait(seconds: float, customers: Sequence[Customer], chaos: Chaos) -> None:
    """Waits, and prints a line now and then."""
    began = time.monotonic()
    while (left := seconds - (time.monotonic() - began)) > 0:
        time.sleep(min(left, _REPORT_SECONDS))
        orders = sum(len(customer.orders) for customer in customers)
        print(f"{time.monotonic() - began:4.0f} s: {orders} orders, {chaos.blows.total()} blows", flush=True)


def _drain(settings: Settings, customers: Sequence[Customer]) -> float:
    """Waits until every job has ended, or for too long; returns the seconds."""
    unfinished = select(func.count()).where(FineTuningJob.status.not_in(FINAL_STATUSES))
    database, began = Database(settings.sqlalchemy_url), time.monotonic()
    while (took := time.monotonic() - began) < DRAIN_SECONDS:
        for customer in customers:
            customer.resume_all()
        with suppress(SQLAlchemyError), database.reader() as session:  # it may be starting again
            if session.scalar(unfinished) == 0:
                break
        time.sleep(1)
    database.dispose()
    return took


if __name__ == "__main__":
    main()
