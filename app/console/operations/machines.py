"""Workers, engines, and the jobs that wait for them.

They belong to the whole deployment; of what they do, a project sees what is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.completions import service as completions_service
from app.completions.models import Engine
from app.context import Context
from app.fine_tuning import queue, worker_registry
from app.fine_tuning.models import FineTuningJob, Worker
from app.models.adapters.models import Adapter

_MOST_WAITING = 20


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker, with its job if that is the project's."""

    worker: Worker
    is_alive: bool
    job: FineTuningJob | None


@dataclass(frozen=True, slots=True)
class EngineState:
    """An engine, with those of the adapters in its memory that are the project's."""

    engine: Engine
    is_alive: bool
    adapters: Sequence[str]

    @property
    def others(self) -> int:
        """How many adapters of other projects it has in memory."""
        return len(self.engine.adapters) - len(self.adapters)


@dataclass(frozen=True, slots=True)
class Machines:
    """What the deployment has, and what waits for it."""

    workers: Sequence[WorkerState]
    engines: Sequence[EngineState]
    waiting: Sequence[tuple[FineTuningJob, int]]
    """The project's first waiting jobs, each with how many of any project go before it."""
    waiting_count: int
    """All waiting jobs of the project."""


def read(session: Session, context: Context) -> Machines:
    """Return the state of the machines as a project may see it."""
    rows = worker_registry.with_ages(session)
    beat = context.settings.heartbeat_seconds
    own_jobs = _own_jobs(session, context.project_id, [worker.job_id for worker, _ in rows if worker.job_id])
    engines = completions_service.all_engines(session, context.settings)
    names = {name for engine, _ in engines for name in engine.adapters}
    own = set(
        session.scalars(
            select(Adapter.name).where(Adapter.name.in_(names), Adapter.project_id == context.project_id)
        )
    )
    is_waiting = FineTuningJob.project_id == context.project_id, FineTuningJob.status == "queued"
    waiting = session.scalars(
        select(FineTuningJob)
        .where(*is_waiting)
        .order_by(FineTuningJob.rank, FineTuningJob.created_at, FineTuningJob.id)
        .limit(_MOST_WAITING)
    ).all()
    positions = queue.positions(session, [job.id for job in waiting])
    return Machines(
        [
            WorkerState(worker, worker_registry.is_alive(age, beat), own_jobs.get(worker.job_id or ""))
            for worker, age in rows
        ],
        [
            EngineState(engine, is_alive, [name for name in engine.adapters if name in own])
            for engine, is_alive in engines
        ],
        [(job, positions.get(job.id, 0)) for job in waiting],
        session.scalar(select(func.count()).where(*is_waiting)) or 0,
    )


def fingerprint(session: Session, context: Context, _argument: str) -> str:
    """Return what changes when the page should."""
    workers = [
        (
            worker.id,
            worker.job_id,
            worker.memory_bytes // 2**27,
            worker_registry.is_alive(age, context.settings.heartbeat_seconds),
        )
        for worker, age in worker_registry.with_ages(session)
    ]
    engines = [
        (engine.id, engine.status, engine.requests, engine.adapters, is_alive)
        for engine, is_alive in completions_service.all_engines(session, context.settings)
    ]
    jobs = select(func.count(), func.max(FineTuningJob.created_at)).where(
        FineTuningJob.project_id == context.project_id, FineTuningJob.status == "queued"
    )
    return repr((workers, engines, tuple(session.execute(jobs).one())))


def _own_jobs(session: Session, project_id: str, job_ids: Sequence[str]) -> dict[str, FineTuningJob]:
    jobs = session.scalars(
        select(FineTuningJob).where(FineTuningJob.id.in_(job_ids), FineTuningJob.project_id == project_id)
    )
    return {job.id: job for job in jobs}
