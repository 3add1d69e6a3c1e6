"""Files without rows and rows without files: what crashes leave, found by age and never by guess."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.adapters.models import Adapter
from app.files.models import File
from app.files.storage import LocalStorage
from app.fine_tuning.models import FINAL_STATUSES, FineTuningJob

AGE_SECONDS = 24 * 3600.0
"""Younger files may belong to a transaction that is about to commit."""


@dataclass(frozen=True, slots=True)
class Orphans:
    """What does not fit together."""

    missing: list[str]
    """Keys that rows name and storage does not have."""
    unnamed: list[Path]
    """Files and folders in storage that no row needs."""


def find_orphans(session: Session, storage: LocalStorage, age_seconds: float = AGE_SECONDS) -> Orphans:
    """Compares every row with storage; files younger than `age_seconds` are left out."""
    wanted = _wanted_keys(session)
    missing = sorted(key for key in wanted if not storage.path(key).exists())
    before = time.time() - age_seconds
    unnamed = [
        path
        for path in _stored(session, storage)
        if storage.key(path) not in wanted and path.stat().st_mtime < before
    ]
    return Orphans(missing, sorted(unnamed))


def sweep_orphans(session: Session, storage: LocalStorage, age_seconds: float = AGE_SECONDS) -> list[Path]:
    """Removes what no row needs and is old enough; returns it."""
    unnamed = find_orphans(session, storage, age_seconds).unnamed
    for path in unnamed:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return unnamed


def _wanted_keys(session: Session) -> set[str]:
    """Files that are not deleted, or that a job may still read; adapters that are not deleted."""
    unfinished = select(FineTuningJob.training_file_id, FineTuningJob.validation_file_id).where(
        FineTuningJob.status.not_in(FINAL_STATUSES)
    )
    needed = {file for pair in session.execute(unfinished) for file in pair if file is not None}
    files = select(File.storage_key).where(or_(File.deleted_at.is_(None), File.id.in_(needed)))
    adapters = select(Adapter.storage_key).where(Adapter.deleted_at.is_(None))
    return {*session.scalars(files), *session.scalars(adapters)}


def _stored(session: Session, storage: LocalStorage) -> Iterator[Path]:
    """Uploads, imports, half-written ones, and checkpoints of jobs that have ended or do not exist."""
    for folder in ("files", "adapters", "tmp"):
        yield from storage.path(folder).glob("*")
    unfinished = set(
        session.scalars(select(FineTuningJob.id).where(FineTuningJob.status.not_in(FINAL_STATUSES)))
    )
    for job_folder in storage.path("jobs").glob("*"):
        if job_folder.name not in unfinished:
            yield from job_folder.glob("*/checkpoints/*")
