"""Rows of workers, without the workers."""

from __future__ import annotations

import time

from app.core.database import Database
from app.fine_tuning import worker_registry
from app.fine_tuning.models import Worker


def add_worker(database: Database) -> None:
    """A worker that has just reported itself."""
    row = Worker(
        id="worker_1",
        hostname="h",
        pid=1,
        device="cpu",
        version="0",
        started_at=time.time(),
        memory_bytes=2**20,
        job_id="ftjob-1",
    )
    with database.writer() as session:
        worker_registry.report(session, row)
