"""Deletes an archived project with all that it has; only a line in the audit log stays.

Each step may be interrupted and repeated: what is in the storage goes before the row that names it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy import ColumnElement, MetaData, Table, delete, or_, select, tuple_, update
from sqlalchemy.orm import Session

from app.audit.models import AuditLog
from app.audit.recorder import Actor
from app.auth.models import Project
from app.auth.service import get_project
from app.batches.models import FINAL_STATUSES as ENDED_BATCHES
from app.batches.models import Batch
from app.comparisons.models import FINAL_STATUSES as ENDED_COMPARISONS
from app.comparisons.models import Comparison
from app.core.database import Database, advisory_lock, database_now
from app.core.errors import ConflictError, UnavailableError
from app.files.models import File
from app.fine_tuning import service as jobs_service
from app.fine_tuning.models import FINAL_STATUSES, FineTuningJob, Worker
from app.models.adapters.models import Adapter
from app.orphans import is_needed
from app.storage.base import Storage
from app.uploads.models import Upload, parts_key

_KEYS_KNOWN_SECONDS = 5.0
"""For less than this, an API process may still accept the key of a project that was archived."""
_WORKER_SECONDS = 60.0
_POLL_SECONDS = 0.2
_ROWS_AT_ONCE = 5000
_KEPT_TO_THE_END = ("projects", "files")


def delete_project(
    database: Database,
    storage: Storage,
    trackers: Path,
    actor: Actor,
    project_id: str,
    *,
    patience: float = _WORKER_SECONDS,
) -> None:
    """Cancel an archived project's jobs, wait until workers have let go of them, and delete all it has.

    Args:
        database, storage: where it is deleted.
        trackers: the folder in which trackers keep the runs of jobs on this machine.
        actor: who deletes it.
        project_id: the project.
        patience: seconds.

    Raises:
        NotFoundError: the project does not exist.
        ConflictError: it is not archived, or a worker still trains one of its jobs after `patience` seconds.
        UnavailableError: a folder of it cannot be removed.
        sqlalchemy.exc.SQLAlchemyError: the database cannot be used; run it again.
    """
    with database.writer() as session:
        archived_at = _begin(session, project_id)
    time.sleep(min(max(archived_at + _KEYS_KNOWN_SECONDS - time.time(), 0.0), _KEYS_KNOWN_SECONDS))
    _await_workers(database, project_id, patience)
    with database.reader() as session:
        folders = list(_folders(session, project_id))
        runs = list(_runs(session, trackers, project_id))
    for key in folders:
        storage.remove(key)
        if storage.exists(key):
            raise UnavailableError(
                f"{key} cannot be removed from the storage, and no row was deleted: run the command again.",
                code="storage_unavailable",
            )
    for run in runs:
        shutil.rmtree(run)
    owned = _owned_rows(database, project_id)
    _delete_most(database, owned)
    with database.writer() as session:
        _lock(session, project_id)
        for table, condition in owned:
            if table.name not in _KEPT_TO_THE_END:
                session.execute(delete(table).where(condition))
    _delete_files(database, storage, project_id)
    with database.writer() as session:
        _lock(session, project_id)
        for table, condition in owned:  # what was answered or written meanwhile
            session.execute(delete(table).where(condition))
        session.add(_line(actor, project_id))


def _delete_most(database: Database, owned: Sequence[tuple[Table, ColumnElement[bool]]]) -> None:
    """Delete the rows that no others refer to, which are by far the most, in short transactions."""
    referred = {key.column.table.name for table, _ in owned for key in table.foreign_keys}
    for table, condition in owned:
        if table.name in referred:
            continue
        key = tuple_(*table.primary_key.columns)
        some = select(*table.primary_key.columns).where(condition).limit(_ROWS_AT_ONCE)
        are_left = True
        while are_left:
            with database.writer() as session:
                deleted = session.connection().execute(delete(table).where(key.in_(some))).rowcount
            are_left = deleted == _ROWS_AT_ONCE


def _lock(session: Session, project_id: str) -> None:
    """Keep others from adding rows that refer to the project until the transaction ends."""
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update())


def _begin(session: Session, project_id: str) -> float:
    """Cancel what is unfinished of the project, and return when it was archived."""
    project = get_project(session, project_id)
    if project.archived_at is None:
        raise ConflictError(
            f"The project '{project_id}' is in use; archive it first (`toque projects archive`).",
            code="project_not_archived",
        )
    unfinished = FineTuningJob.project_id == project_id, FineTuningJob.status.not_in(FINAL_STATUSES)
    for job_id in session.scalars(select(FineTuningJob.id).where(*unfinished)).all():
        jobs_service.cancel_job(session, project_id, job_id)
    for table, ended in ((Batch, ENDED_BATCHES), (Comparison, ENDED_COMPARISONS)):
        running = table.project_id == project_id, table.status.not_in(ended)
        stopped = {"status": "cancelled", "lease_epoch": table.lease_epoch + 1, "lease_until": None}
        session.execute(update(table).where(*running).values(stopped))
    return project.archived_at


def _await_workers(database: Database, project_id: str, patience: float) -> None:
    """Wait until no worker that is alive still has one of the project's jobs, whose folders it writes to."""
    jobs = select(FineTuningJob.id).where(FineTuningJob.project_id == project_id)
    busy = select(Worker.id).where(
        Worker.job_id.in_(jobs), Worker.heartbeat_at > database_now() - _WORKER_SECONDS
    )
    deadline = time.monotonic() + patience
    while True:
        with database.reader() as session:
            worker_id = session.scalar(busy.limit(1))
        if worker_id is None:
            return
        if time.monotonic() > deadline:
            raise ConflictError(
                f"The worker {worker_id} has not let go of one of the project's jobs yet, and nothing was "
                "deleted: run the command again.",
                code="project_in_use",
            )
        time.sleep(_POLL_SECONDS)


def _folders(session: Session, project_id: str) -> Iterator[str]:
    """Yield the keys of what the project has in the storage, but for files, whose bytes others may share."""
    for upload_id in session.scalars(select(Upload.id).where(Upload.project_id == project_id)):
        yield parts_key(upload_id)
    for job_id in session.scalars(select(FineTuningJob.id).where(FineTuningJob.project_id == project_id)):
        yield f"jobs/{job_id}"
    yield from session.scalars(select(Adapter.storage_key).where(Adapter.project_id == project_id))


def _runs(session: Session, trackers: Path, project_id: str) -> Iterator[Path]:
    """Yield the folders that W&B's library has kept of the project's jobs."""
    for job_id in session.scalars(select(FineTuningJob.id).where(FineTuningJob.project_id == project_id)):
        yield from trackers.glob(f"wandb/*-{job_id}")


def _owned_rows(database: Database, project_id: str) -> list[tuple[Table, ColumnElement[bool]]]:
    """Return every table that has rows of a project, and which, in an order in which they can be deleted.

    A row belongs to the project that it names, or that a row belongs to which it refers to.
    """
    metadata = MetaData()
    metadata.reflect(database.engine)
    owned: dict[str, ColumnElement[bool]] = {}
    for table in metadata.sorted_tables:  # what others refer to comes first
        name = "id" if table.name == "projects" else "project_id"
        conditions = [table.c[name] == project_id] if name in table.c else []
        conditions += [
            key.parent.in_(select(key.column).where(owned[key.column.table.name]))
            for key in table.foreign_keys
            if key.column.table.name in owned and key.column.table.name != "projects"
        ]
        if conditions:
            owned[table.name] = or_(*conditions)
    return [(metadata.tables[name], owned[name]) for name in reversed(owned)]


def _delete_files(database: Database, storage: Storage, project_id: str) -> None:
    """Delete files one by one; bytes stay that another project's file needs."""
    with database.reader() as session:
        files = session.execute(select(File.id, File.storage_key).where(File.project_id == project_id)).all()
    for file_id, key in files:
        with database.writer() as session:
            advisory_lock(session, key)  # as for an upload of equal bytes
            if not is_needed(session, key, File.project_id != project_id):
                storage.remove(key)
            session.execute(delete(File).where(File.id == file_id))


def _line(actor: Actor, project_id: str) -> AuditLog:
    return AuditLog(
        type="project.deleted",
        resource_id=project_id,
        project_id=project_id,
        actor_type=actor.type,
        actor_id=actor.id,
        address=actor.address,
        before={},
        after={},
    )
