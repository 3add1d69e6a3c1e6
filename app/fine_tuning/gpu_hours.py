"""The GPU-hours of a project in a calendar month (UTC): the time for which workers held its jobs, times GPUs.

A project that has used up its quota creates no more jobs, and those that wait are paused until the next month
begins or the quota is raised. Jobs that run go on.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, case, func, insert, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.auth.models import Project
from app.core.database import database_now
from app.core.errors import QuotaExceededError
from app.fine_tuning.models import Attempt, FineTuningJob

_Time = InstrumentedAttribute[float] | InstrumentedAttribute[float | None] | ColumnElement[float]

_END = case((FineTuningJob.lease_until < database_now(), FineTuningJob.lease_until), else_=database_now())
"""When the attempt of a running job has ended, if it ends now: its worker may have died before."""


def record_attempt(session: Session, job_id: str) -> None:
    """Record what the job's present attempt took, in the transaction that is about to end it."""
    ended = select(
        FineTuningJob.id,
        FineTuningJob.lease_epoch,
        FineTuningJob.project_id,
        FineTuningJob.gpus,
        func.coalesce(FineTuningJob.started_at, _END),
        _END,
    ).where(FineTuningJob.id == job_id, FineTuningJob.status == "running")
    columns = ["job_id", "epoch", "project_id", "gpus", "started_at", "ended_at"]
    session.connection().execute(insert(Attempt).from_select(columns, ended))


def used_gpu_hours(session: Session, project_id: str, at: float | None = None) -> float:
    """Return the GPU-hours that the project has used since the month began, jobs that run among them."""
    begin = month_begin(at if at is not None else time.time())
    ended = select(func.sum(_overlap(Attempt.started_at, Attempt.ended_at, begin) * Attempt.gpus)).where(
        Attempt.project_id == project_id, Attempt.ended_at > begin
    )
    running = select(func.sum(_overlap(FineTuningJob.started_at, _END, begin) * FineTuningJob.gpus)).where(
        FineTuningJob.project_id == project_id, FineTuningJob.status == "running", begin < _END
    )
    return ((session.scalar(ended) or 0.0) + (session.scalar(running) or 0.0)) / 3600


def require_gpu_hours(session: Session, project_id: str) -> None:
    """Check that the project has GPU-hours left in this month.

    Raises:
        QuotaExceededError: it has not.
    """
    most = session.scalar(select(Project.max_gpu_hours).where(Project.id == project_id))
    if most is None or (used := used_gpu_hours(session, project_id)) < most:
        return
    raise QuotaExceededError(
        f"The project has used {used:,.2f} GPU-hours in this month, and may use {most:,.2f}. Wait for the "
        "next month, or ask an administrator for more.",
        code="insufficient_quota",
    )


def month_begin(at: float) -> float:
    """Return the first second of the month (UTC) that a time is in."""
    day = datetime.fromtimestamp(at, UTC)
    return datetime(day.year, day.month, 1, tzinfo=UTC).timestamp()


def _overlap(start: _Time, end: _Time, begin: float) -> ColumnElement[float]:
    return end - case((start < begin, begin), else_=start)
