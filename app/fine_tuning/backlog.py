"""How many jobs wait for workers, and how many run: what a fleet of workers is sized by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.database import database_now
from app.fine_tuning.models import SPEC_VERSION, FineTuningJob


def count_claimable(
    session: Session, base_models: Sequence[str], *, running_limit: int = 0, within_seconds: float = 0.0
) -> dict[int, int]:
    """Return how many jobs could be claimed within so many seconds, by the number of GPUs that they ask for.

    Of a project, no more are counted than it may run at the same time (`running_limit`, 0 for no limit).
    """
    queued = (
        select(FineTuningJob.project_id, FineTuningJob.gpus, func.count())
        .where(
            FineTuningJob.status == "queued",
            FineTuningJob.not_before <= database_now() + within_seconds,
            FineTuningJob.model.in_(base_models),
            FineTuningJob.spec_version <= SPEC_VERSION,
        )
        .group_by(FineTuningJob.project_id, FineTuningJob.gpus)
        .order_by(FineTuningJob.project_id, FineTuningJob.gpus)
    )
    room: dict[str, int] = {}
    if running_limit:
        running = (
            select(FineTuningJob.project_id, func.count())
            .where(FineTuningJob.status == "running")
            .group_by(FineTuningJob.project_id)
        )
        room = {project: running_limit - jobs for project, jobs in session.execute(running)}
    claimable = Counter[int]()
    for project, gpus, jobs in session.execute(queued):
        claimed = min(jobs, max(0, room.get(project, running_limit))) if running_limit else jobs
        room[project] = room.get(project, running_limit) - claimed
        claimable[gpus] += claimed
    return dict(+claimable)


def count_running(session: Session) -> dict[int, int]:
    """Return how many jobs are running, by the number of GPUs that they ask for."""
    counted = (
        select(FineTuningJob.gpus, func.count())
        .where(FineTuningJob.status == "running")
        .group_by(FineTuningJob.gpus)
    )
    return {gpus: jobs for gpus, jobs in session.execute(counted)}  # noqa: C416 - a Row is no pair
