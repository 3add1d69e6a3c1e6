"""The registry of workers: one row each, which counts as alive while its heartbeat is recent."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.core.database import database_now
from app.fine_tuning.models import Worker

_SILENT_SECONDS = 24 * 3600.0
"""How long the row of a worker that was killed is kept, and the worker listed as silent."""


def report(session: Session, worker: Worker) -> None:
    """Write the worker's row, with the database's time as its heartbeat."""
    session.merge(worker).heartbeat_at = database_now()  # pyright: ignore[reportAttributeAccessIssue]


def remove(session: Session, worker_id: str) -> None:
    """Delete the row of a worker that ends."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def delete_silent(session: Session) -> None:
    """Delete the rows of workers that have been silent for a day."""
    session.execute(delete(Worker).where(Worker.heartbeat_at < database_now() - _SILENT_SECONDS))


def with_ages(session: Session) -> Sequence[tuple[Worker, float]]:
    """Return every worker, oldest first, with the seconds since its last heartbeat."""
    age = database_now() - Worker.heartbeat_at
    rows = session.execute(select(Worker, age).order_by(Worker.started_at, Worker.id))
    return [(worker, seconds) for worker, seconds in rows]


def alive(session: Session, heartbeat_seconds: float) -> list[Worker]:
    """Return the workers that have missed fewer than three heartbeats."""
    return [worker for worker, age in with_ages(session) if is_alive(age, heartbeat_seconds)]


def offered_gpus(session: Session, heartbeat_seconds: float) -> int:
    """Return the most GPUs that a worker which is alive offers to a job; 0 if none is alive."""
    return max((worker.gpus for worker in alive(session, heartbeat_seconds)), default=0)


def is_alive(age: float, heartbeat_seconds: float) -> bool:
    """Whether a worker whose last heartbeat is `age` seconds ago counts as alive."""
    return age < 3 * heartbeat_seconds
