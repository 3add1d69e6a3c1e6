"""Deletes data that is older than its project keeps it. A worker calls it every hour.

Nothing is deleted that an unfinished job, batch or comparison uses, or that an alias points to. Each deletion
is in the audit log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from socket import gethostname

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select
from sqlalchemy.orm import Session

from app.audit.models import AuditLog
from app.audit.recorder import Actor, acting_as
from app.auth.models import Project
from app.batches.models import FINAL_STATUSES as ENDED_BATCHES
from app.batches.models import Batch
from app.comparisons.models import FINAL_STATUSES as ENDED_COMPARISONS
from app.comparisons.models import Comparison
from app.comparisons.plan import Plan
from app.core.database import Database
from app.files.models import File
from app.fine_tuning.models import FINAL_STATUSES, Event, FineTuningJob, TrackedRun
from app.models.adapters.models import IS_CHECKPOINT, Adapter
from app.models.aliases.models import Alias
from app.orphans import is_read

_AT_ONCE = 100
_EVENTS_AT_ONCE = 50_000
"""Lines of logs: to delete that many takes about a second, in which SQLite lets nobody else write."""
_ACTOR = "retention"
_DAY_SECONDS = 86_400
_RESULTS = ("batch_output", "fine-tune-results")
"""The purposes of files that nobody has uploaded."""


def delete_old_data(database: Database) -> None:
    """Delete what is older than its project keeps it."""
    with database.reader() as session:
        of_projects = select(Project.id, Project.retention_days).where(Project.retention_days.is_not(None))
        kept = [(project, days or {}) for project, days in session.execute(of_projects)]
    with acting_as(Actor("session", _ACTOR, gethostname())):
        for project_id, days in kept:
            for kind in days:
                before = time.time() - days[kind] * _DAY_SECONDS
                while _delete_some(database, _KINDS[kind], project_id, before):
                    pass


def _delete_some(
    database: Database, delete_some: Callable[[Session, str, float], int], project_id: str, before: float
) -> bool:
    """Delete some in one transaction, and return whether there were any."""
    with database.writer() as session:
        return delete_some(session, project_id, before) > 0


def _delete_files(session: Session, project_id: str, before: float) -> int:
    return _hide_files(session, project_id, before, File.purpose.not_in(_RESULTS))


def _delete_outputs(session: Session, project_id: str, before: float) -> int:
    return _hide_files(session, project_id, before, File.purpose == "batch_output")


def _hide_files(session: Session, project_id: str, before: float, which: ColumnElement[bool]) -> int:
    old = select(File).where(
        File.project_id == project_id, File.deleted_at.is_(None), File.created_at < before, which, ~_is_used()
    )
    some = old.order_by(File.created_at).limit(_AT_ONCE)
    files = session.scalars(some.with_for_update(skip_locked=True, of=File)).all()  # once by all workers
    for file in files:
        file.deleted_at = time.time()  # the bytes are removed a day later
    return len(files)


def _is_used() -> ColumnElement[bool]:
    """The condition for files that something unfinished reads."""
    unfinished = Comparison.status.not_in(ENDED_COMPARISONS)
    compared = (Comparison.file_id, Comparison.regression_file_id)
    return or_(
        is_read(),
        *(File.id.in_(select(named).where(unfinished, named.is_not(None))) for named in compared),
    )


def _delete_checkpoints(session: Session, project_id: str, before: float) -> int:
    old = select(Adapter).where(
        Adapter.project_id == project_id,
        Adapter.deleted_at.is_(None),
        Adapter.created_at < before,
        IS_CHECKPOINT,
    )
    some = old.where(_is_unused(session, project_id)).order_by(Adapter.created_at).limit(_AT_ONCE)
    locked = session.scalars(some.with_for_update(skip_locked=True, of=Adapter)).all()
    # From here nothing can begin to use them; what began in between is looked at again.
    names = [checkpoint.name for checkpoint in locked]
    unused = select(Adapter).where(Adapter.name.in_(names), _is_unused(session, project_id))
    for checkpoint in session.scalars(unused).all():
        checkpoint.deleted_at = time.time()
    return len(locked)


def _is_unused(session: Session, project_id: str) -> ColumnElement[bool]:
    """The condition for checkpoints that no alias points to and nothing unfinished uses."""
    aliases = select(Alias).where(Alias.project_id == project_id, Alias.deleted_at.is_(None))
    used = {share["model"] for alias in session.scalars(aliases) for share in alias.split}
    comparing = select(Comparison.plan).where(
        Comparison.project_id == project_id, Comparison.status.not_in(ENDED_COMPARISONS)
    )
    for plan in session.scalars(comparing):
        used.update(candidate.model for candidate in Plan.model_validate(plan).all_candidates)
    unfinished = FineTuningJob.status.not_in(FINAL_STATUSES)
    batches = Batch.project_id == project_id, Batch.status.not_in(ENDED_BATCHES)
    return and_(
        Adapter.name.not_in(used),
        Adapter.job_id.is_(None) | Adapter.job_id.not_in(select(FineTuningJob.id).where(unfinished)),
        Adapter.name.not_in(
            select(FineTuningJob.parent).where(unfinished, FineTuningJob.parent.is_not(None))
        ),
        Adapter.name.not_in(select(Batch.model).where(*batches, Batch.model.is_not(None))),
        ~exists().where(*batches, Batch.model.is_(None)),  # not validated yet, so it may name any of them
    )


def _delete_logs(session: Session, project_id: str, before: float) -> int:
    lines = (
        select(Event.job_id, func.count())
        .join(FineTuningJob, FineTuningJob.id == Event.job_id)
        .where(
            FineTuningJob.project_id == project_id,
            FineTuningJob.status.in_(FINAL_STATUSES),
            func.coalesce(FineTuningJob.finished_at, FineTuningJob.created_at) < before,
            FineTuningJob.id.not_in(select(TrackedRun.job_id).where(TrackedRun.ended_at.is_(None))),
        )
        .group_by(Event.job_id)
        .limit(_AT_ONCE)
    )
    counts: dict[str, int] = {}
    for job_id, count in session.execute(lines):
        if counts and sum(counts.values()) + count > _EVENTS_AT_ONCE:
            break
        counts[job_id] = count
    session.execute(delete(Event).where(Event.job_id.in_(counts)))
    session.add_all(
        AuditLog(
            type="fine_tuning.job.updated",
            resource_id=job_id,
            project_id=project_id,
            actor_type="session",
            actor_id=_ACTOR,
            address=gethostname(),
            before={"events": count},
            after={"events": 0},
        )
        for job_id, count in counts.items()
    )
    return len(counts)


_KINDS: Mapping[str, Callable[[Session, str, float], int]] = {
    "files": _delete_files,
    "outputs": _delete_outputs,
    "checkpoints": _delete_checkpoints,
    "logs": _delete_logs,
}
"""How each kind of `app.project_data.schemas.Retention` is deleted: some at a time, returning how many."""
