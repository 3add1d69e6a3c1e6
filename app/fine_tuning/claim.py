"""Which job a worker gets next: projects take turns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from sqlalchemy import CTE, Integer, String, Subquery, func, literal, literal_column, select, union_all
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.dml import ReturningUpdate

from app.auth.models import Project
from app.core.database import database_now
from app.fine_tuning.models import SPEC_VERSION, FineTuningJob
from app.fine_tuning.queue import LEASES, QUEUED, RUNNING, add_event

QUEUED_CHANNEL = "toque_jobs_queued"
"""What PostgreSQL notifies of base models whose jobs are queued, by a trigger of migration 0041."""
_ONE = literal_column("1", Integer)


def claim_next(
    session: Session,
    worker_id: str,
    base_models: Sequence[str],
    lease_seconds: float,
    *,
    gpus: int = 1,
    least_gpus: int = 1,
    running_limit: int = 0,
    spec_version: int = SPEC_VERSION,
) -> FineTuningJob | None:
    """Lease the next job on one of these base models, and on `least_gpus` to `gpus`; None if there is none.

    Projects take turns: the one with the fewest running jobs comes first, then the one that started a job
    longest ago. Within a project, jobs are ordered by priority, then age. `running_limit` bounds the running
    jobs of a project (0: no bound, and the claim is a single statement).
    """
    if running_limit:
        # Claims wait for each other here, as two at once would not count each other's job. The lock is on the
        # first project's row, in the mode that still lets jobs refer to it. SQLite has one writer anyway.
        first = select(Project.id).order_by(Project.id).limit(1)
        session.execute(first.with_for_update(key_share=True))
    claim = _claim(
        worker_id, tuple(base_models), lease_seconds, (least_gpus, gpus), running_limit, spec_version
    )
    job = session.scalar(claim)
    if job is not None:
        add_event(
            session, job.id, "Fine-tuning job started" if job.lease_epoch == 1 else "Fine-tuning job resumed"
        )
    return job


def seconds_until_due(session: Session, base_models: Sequence[str]) -> float | None:
    """Return in how many seconds a job that waits for another attempt may be claimed; None if none waits."""
    due_in = FineTuningJob.not_before - database_now()
    waiting = FineTuningJob.status == QUEUED, FineTuningJob.model.in_(base_models), due_in > 0
    return session.scalar(select(func.min(due_in)).where(*waiting))


@lru_cache
def _claim(
    worker_id: str,
    base_models: tuple[str, ...],
    lease_seconds: float,
    gpus: tuple[int, int],
    running_limit: int,
    spec_version: int,
) -> ReturningUpdate[FineTuningJob]:
    """The statement of `claim_next`, cached because building it takes longer than running it."""
    least_and_most = literal_column(str(gpus[0]), Integer), literal_column(str(gpus[1]), Integer)
    turn = _turns(base_models, running_limit)
    first_job = (
        select(FineTuningJob.id)
        .where(
            FineTuningJob.project_id == turn.c.project_id,
            FineTuningJob.status == QUEUED,
            FineTuningJob.not_before <= database_now(),
            FineTuningJob.model.in_(base_models),
            FineTuningJob.gpus.between(*least_and_most),
            FineTuningJob.spec_version <= literal_column(str(spec_version), Integer),
        )
        .order_by(FineTuningJob.rank, FineTuningJob.created_at, FineTuningJob.id)
        .limit(_ONE)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    # While another worker is claiming the only job of a project, a job of the next project is selected. The
    # subquery is ordered too, so that PostgreSQL examines (and locks jobs of) no more projects than it must.
    next_job = (
        select(first_job)
        .select_from(turn)
        .where(first_job.is_not(None))
        .order_by(turn.c.running_jobs, turn.c.last_start, turn.c.project_id)
        .limit(_ONE)
    )
    claim = LEASES.claim(
        next_job, lease_seconds, status="running", worker_id=worker_id, started_at=database_now()
    )
    return claim.where(FineTuningJob.status == QUEUED)


def _turns(base_models: Sequence[str], running_limit: int) -> Subquery:
    """The projects with queued jobs on one of these base models, in the order of their turns."""
    waiting = _waiting_projects(base_models)
    projects = select(waiting.c.project_id).where(waiting.c.project_id.is_not(None)).distinct().subquery()
    running, started = aliased(FineTuningJob), aliased(FineTuningJob)
    running_jobs = (
        select(func.count())
        .where(running.project_id == projects.c.project_id, running.status == RUNNING)
        .scalar_subquery()
    )
    last_start = (
        select(func.coalesce(func.max(started.started_at), 0.0))
        .where(started.project_id == projects.c.project_id)
        .scalar_subquery()
    )
    turns = select(projects.c.project_id, running_jobs.label("running_jobs"), last_start.label("last_start"))
    if running_limit:
        turns = turns.where(running_jobs < running_limit)
    return turns.order_by("running_jobs", "last_start", projects.c.project_id).subquery()


def _waiting_projects(base_models: Sequence[str]) -> CTE:
    """The projects with queued jobs by base model, and for each base model a last row without a project.

    Each is found by one look into the index of queued jobs, for the next project after the one before. So
    neither projects without queued jobs are read, nor the other jobs of those with many. This is a loose
    index scan, which PostgreSQL does not do by itself: https://wiki.postgresql.org/wiki/Loose_indexscan.
    """
    models = union_all(*(select(literal(name, String).label("model")) for name in base_models)).subquery()
    first, following = aliased(FineTuningJob), aliased(FineTuningJob)
    first_project = (
        select(func.min(first.project_id))
        .where(first.status == QUEUED, first.model == models.c.model)
        .scalar_subquery()
    )
    waiting = select(models.c.model, first_project.label("project_id")).cte("waiting", recursive=True)
    next_project = (
        select(func.min(following.project_id))
        .where(
            following.status == QUEUED,
            following.model == waiting.c.model,
            following.project_id > waiting.c.project_id,
        )
        .scalar_subquery()
    )
    return waiting.union_all(select(waiting.c.model, next_project).where(waiting.c.project_id.is_not(None)))
