"""Finds files without rows and rows without files, which crashes leave behind, and removes old ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from app.batches.models import FINAL_STATUSES as ENDED_BATCHES
from app.batches.models import Batch
from app.core.database import Database, advisory_lock
from app.files.models import File
from app.fine_tuning.models import FINAL_STATUSES, FineTuningJob
from app.models.adapters.models import Adapter
from app.models.catalogue.models import StoredBaseModel
from app.storage.base import Entry, Storage
from app.uploads.models import Upload, parts_key

AGE_SECONDS = 24 * 3600.0
"""The age from which a file counts as orphaned; a younger one may belong to an open transaction."""


@dataclass(frozen=True, slots=True)
class Orphans:
    """Where the database and the storage disagree."""

    missing: list[str]
    """Keys in the database that storage does not have."""
    unnamed: list[str]
    """Keys of files and folders in storage that no row needs."""


def find_orphans(session: Session, storage: Storage, age_seconds: float = AGE_SECONDS) -> Orphans:
    """Compare all rows with storage, leaving out what was new or still needed `age_seconds` ago."""
    now = time.time()
    before = now - age_seconds
    bases = _base_keys(session)
    missing = sorted(key for key in wanted_keys(session, now) | bases if not storage.exists(key))
    open_uploads = select(Upload.id).where(Upload.status == "pending", Upload.expires_at > before)
    parts = {parts_key(upload) for upload in session.scalars(open_uploads)}
    wanted = wanted_keys(session, before) | bases | parts
    unnamed = [
        entry.key
        for entry in _stored(session, storage)
        if entry.key not in wanted and _is_older(entry, before)
    ]
    return Orphans(missing, sorted(unnamed))


def sweep_orphans(database: Database, storage: Storage, age_seconds: float = AGE_SECONDS) -> list[str]:
    """Remove what no row needs and is old enough, and return its keys."""
    with database.reader() as session:
        unnamed = find_orphans(session, storage, age_seconds).unnamed
    swept: list[str] = []
    for key in unnamed:
        if key.startswith("objects/"):
            is_swept = sweep_object(database, storage, key, age_seconds)
        elif key.startswith("bases/"):
            is_swept = _sweep_base(database, storage, key, age_seconds)
        else:
            storage.remove(key)
            is_swept = True
        if is_swept:
            swept.append(key)
    return swept


def sweep_object(database: Database, storage: Storage, key: str, age_seconds: float = AGE_SECONDS) -> bool:
    """Remove bytes that files may share, unless a file needs them; return whether they were removed.

    An upload of equal bytes either commits before this transaction, which then sees it, or stores them again
    after it.
    """
    with database.writer() as session:
        advisory_lock(session, key)
        before = time.time() - age_seconds
        is_old = all(_is_older(entry, before) for entry in storage.files(key))
        if is_needed(session, key, age_seconds=age_seconds) or not is_old:
            return False
        storage.remove(key)
    return True


def _sweep_base(database: Database, storage: Storage, key: str, age_seconds: float) -> bool:
    """Remove a base model's files unless its row has been added or some have been sent again meanwhile."""
    with database.writer() as session:
        advisory_lock(session, PurePosixPath(key).parent.as_posix())
        is_old = all(_is_older(entry, time.time() - age_seconds) for entry in storage.files(key))
        if key in _base_keys(session) or not is_old:
            return False
        storage.remove(key)
    return True


def _base_keys(session: Session) -> set[str]:
    return {stored.storage_key for stored in session.scalars(select(StoredBaseModel))}


def is_needed(
    session: Session, key: str, *conditions: ColumnElement[bool], age_seconds: float = AGE_SECONDS
) -> bool:
    """Whether a file, of those that meet the conditions, needs the bytes or did so `age_seconds` ago."""
    needing = select(File.id).where(File.storage_key == key, _needed(time.time() - age_seconds), *conditions)
    return session.scalar(needing.limit(1)) is not None


def wanted_keys(session: Session, before: float) -> set[str]:
    """The keys of files that are needed, and of adapters that exist or that an unfinished job starts from."""
    files = select(File.storage_key).where(_needed(before))
    parents = select(FineTuningJob.parent).where(
        FineTuningJob.status.not_in(FINAL_STATUSES), FineTuningJob.parent.is_not(None)
    )
    # In one statement: a model may be deleted right after a job on it was created.
    adapters = select(Adapter.storage_key).where(or_(Adapter.deleted_at.is_(None), Adapter.name.in_(parents)))
    return {*session.scalars(files), *session.scalars(adapters)}


def _needed(before: float) -> ColumnElement[bool]:
    """The condition for files that existed after `before`, or that unfinished jobs or batches may read."""
    kept = and_(
        or_(File.deleted_at.is_(None), File.deleted_at > before),
        or_(File.expires_at.is_(None), File.expires_at > before),
    )
    return or_(kept, is_read())


def is_read() -> ColumnElement[bool]:
    """The condition for files that unfinished jobs or batches may read."""
    unfinished = FineTuningJob.status.not_in(FINAL_STATUSES)
    return or_(
        File.id.in_(select(Batch.input_file_id).where(Batch.status.not_in(ENDED_BATCHES))),
        *(
            File.id.in_(select(named).where(unfinished, named.is_not(None)))
            for named in (
                FineTuningJob.training_file_id,
                FineTuningJob.validation_file_id,
                FineTuningJob.rest_file_id,
            )
        ),
    )


def _is_older(entry: Entry, before: float) -> bool:
    return entry.modified_ns < before * 1e9


def _stored(session: Session, storage: Storage) -> Iterator[Entry]:
    """Yield everything in storage that may be an orphan; of checkpoints, those of ended or unknown jobs."""
    for pattern in ("objects/*/*", "files/*", "uploads/*", "adapters/*", "bases/*/*", "tmp/*", "incoming/*"):
        yield from storage.list(pattern)
    unfinished = set(
        session.scalars(select(FineTuningJob.id).where(FineTuningJob.status.not_in(FINAL_STATUSES)))
    )
    for entry in storage.list("jobs/*/*/checkpoints/*"):
        if PurePosixPath(entry.key).parts[1] not in unfinished:
            yield entry
