"""`toque workers`: lists the training workers, straight from the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.cli.database_session import database_session
from app.cli.output import AsJson, print_json, print_table
from app.cli.settings import read_settings

if TYPE_CHECKING:
    from app.fine_tuning.models import Worker


def workers(as_json: AsJson = False) -> None:
    """List the workers of the whole deployment and their jobs; a worker that died is listed for a day.

    Example: toque workers
    """
    from app.fine_tuning.worker_registry import is_alive, with_ages  # noqa: PLC0415 - SQLAlchemy is slow to import

    settings = read_settings()
    with database_session(settings, read_only=True) as session:
        found = [
            (worker, age, is_alive(age, settings.heartbeat_seconds)) for worker, age in with_ages(session)
        ]
    if as_json:
        print_json([_plain(*each) for each in found])
        return
    rows = [
        (
            worker.id,
            f"{worker.hostname}:{worker.pid}",
            worker.device if worker.gpus == 1 else f"{worker.gpus} x {worker.device}",
            f"{worker.memory_bytes / 2**30:.1f} GiB",
            worker.job_id,
            f"{age:.0f} s ago",
            worker.version,
            "alive" if alive else "silent",
        )
        for worker, age, alive in found
    ]
    print_table(("ID", "HOST:PID", "DEVICE", "MEMORY", "JOB", "HEARTBEAT", "VERSION", "STATE"), rows)


def _plain(worker: Worker, age: float, alive: bool) -> dict[str, object]:
    return {
        "id": worker.id,
        "hostname": worker.hostname,
        "pid": worker.pid,
        "device": worker.device,
        "gpus": worker.gpus,
        "memory_bytes": worker.memory_bytes,
        "job": worker.job_id,
        "heartbeat_age_seconds": round(age, 1),
        "version": worker.version,
        "started_at": int(worker.started_at),
        "alive": alive,
    }
