"""Pauses the waiting jobs of projects whose GPU-hours are used up, and resumes them once there are more."""

from __future__ import annotations

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.auth.models import Project
from app.fine_tuning import queue
from app.fine_tuning.gpu_hours import used_gpu_hours
from app.fine_tuning.models import FineTuningJob

REASON = "gpu_hours_used_up"


def pause_and_resume(session: Session) -> None:
    """Bring the waiting jobs of all projects in line with their quotas. Any worker may do it at any time."""
    is_paused = FineTuningJob.status == "paused", FineTuningJob.pause_reason == REASON
    has_paused = select(FineTuningJob.id).where(FineTuningJob.project_id == Project.id, *is_paused).exists()
    limited = select(Project.id, Project.max_gpu_hours).where(
        or_(Project.max_gpu_hours.is_not(None), has_paused)
    )
    for project_id, most in session.execute(limited).all():
        is_used_up = most is not None and used_gpu_hours(session, project_id) >= most
        concerned = (FineTuningJob.status == "queued",) if is_used_up else is_paused
        jobs = select(FineTuningJob).where(FineTuningJob.project_id == project_id, *concerned)
        for job in session.scalars(jobs.with_for_update(skip_locked=True)).all():
            if is_used_up:
                job.status, job.pause_reason = "paused", REASON
                message = f"Paused: the project has used up its {most:,.2f} GPU-hours of this month"
                queue.add_event(session, job.id, message, level="warn")
            else:
                job.status, job.pause_reason = "queued", None
                queue.add_event(session, job.id, "There are GPU-hours again: the job waits for a worker")
