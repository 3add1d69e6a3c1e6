"""When a waiting job will start."""

from __future__ import annotations

import statistics
import time

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.settings import Settings
from app.fine_tuning import queue, worker_registry
from app.fine_tuning.models import FineTuningJob
from app.fine_tuning.schemas import JobObject


def describe_job(session: Session, settings: Settings, job: FineTuningJob) -> JobObject:
    """Return the job as the API shows it: while it waits, with its place in the queue and expected start."""
    shown = JobObject.of(job)
    if job.status == "queued":
        shown.queue_position, shown.estimated_start = _forecast(session, settings, job)
    return shown


def _forecast(session: Session, settings: Settings, job: FineTuningJob) -> tuple[int, int | None]:
    """Return a waiting job's place in the queue (0: next) and its start, estimated from recent jobs."""
    ahead = queue.position(session, job)
    alive = len(worker_registry.alive(session, settings.heartbeat_seconds))
    recent = (
        select(FineTuningJob.finished_at - FineTuningJob.started_at)
        .where(FineTuningJob.status == "succeeded")
        .order_by(FineTuningJob.finished_at.desc())
        .limit(20)
    )
    durations = [seconds for seconds in session.scalars(recent) if seconds is not None]
    running = session.scalars(select(FineTuningJob.estimated_finish).where(FineTuningJob.status == "running"))
    finishes = [finish for finish in running if finish is not None]
    if not alive or not durations:
        return ahead, None
    first_free = min(finishes, default=time.time()) if len(finishes) >= alive else time.time()
    return ahead, int(first_free + ahead / alive * statistics.median(durations))
