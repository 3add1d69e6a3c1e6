"""How far a job is."""

from __future__ import annotations

import math
import time

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.fine_tuning.models import FINAL_STATUSES, Attempt, FineTuningJob


def total_steps(job: FineTuningJob) -> int | None:
    """Return how many steps the job has; None while that depends on a file that is still being checked."""
    epochs, batch_size = (job.hyperparameters.get(name) for name in ("n_epochs", "batch_size"))
    examples = job.validation_split["examples"] if job.validation_split else job.training_file.examples
    if not isinstance(epochs, int) or not isinstance(batch_size, int) or not examples:
        return None
    return epochs * math.ceil(examples / batch_size)


def seconds_left(job: FineTuningJob) -> float | None:
    """Return how long a job that runs is expected to take; None if nothing is known, or it takes longer."""
    if job.status != "running" or job.estimated_finish is None:
        return None
    left = job.estimated_finish - time.time()
    return left if left > 0 else None


def seconds_worked(session: Session, job: FineTuningJob) -> float | None:
    """Return how long workers have held the job, in all its attempts; None if none has."""
    if job.started_at is None:
        return None
    ended = select(func.sum(Attempt.ended_at - Attempt.started_at)).where(Attempt.job_id == job.id)
    running = max(0.0, time.time() - job.started_at) if job.status == "running" else 0.0
    return (session.scalar(ended) or 0.0) + running


def has_ended(job: FineTuningJob) -> bool:
    """Return whether its status is final."""
    return job.status in FINAL_STATUSES
