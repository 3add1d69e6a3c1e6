"""Making a backup while the service runs.

Files never change, and are stored before the row that names them is committed. So the database is copied
first, and then the files that the copy names. If one of these is removed in between, because what it belongs
to is deleted, the database is copied again; the files that were copied already are not.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app import __version__
from app.backup.database_copy import copied_database
from app.backup.errors import BackupError
from app.backup.manifest import NAME, Content, Manifest, read_manifest, storage_of, write_manifest
from app.core import migrations
from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning.models import FINAL_STATUSES, FineTuningJob
from app.orphans import wanted_keys
from app.storage import open_storage
from app.storage.base import Entry, Storage

log = logging.getLogger("toque.backup")

_LOCK = "backup.lock"
_MOST_COPIES = 5
_BLOCK_BYTES = 4 * 2**20


def create_backup(settings: Settings, folder: Path) -> Manifest:
    """Back up the database and the storage into a folder, which is empty or holds an earlier backup.

    The earlier backup stays whole until the new one is; files that it has already are not copied again.

    Raises:
        BackupError: the folder holds something else, the schema is not this version's, or a tool failed.
        StorageFullError: there is no room.
        OSError: the folder cannot be written to.
        sqlalchemy.exc.SQLAlchemyError: the database cannot be read.
    """
    folder, storage = folder.absolute(), open_storage(settings)
    _require_own_folder(folder, storage)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database(settings.sqlalchemy_url)
    try:
        with FileLock(folder / _LOCK, timeout=0):
            _remove_unnamed_databases(folder)
            try:
                manifest = _copy_until_consistent(database, storage, folder, _earlier(folder))
                write_manifest(folder, manifest)
            finally:
                _remove_unnamed_databases(folder)
            _remove_rest(folder, manifest)
            return manifest
    except Timeout:
        raise BackupError(f"another backup is being made in {folder}") from None
    finally:
        database.dispose()


def _require_own_folder(folder: Path, storage: Storage) -> None:
    if storage.holds(folder):
        raise BackupError("a backup cannot be in the storage that it is made of")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _LOCK).exists():
        raise BackupError(f"{folder} holds something that is no backup: name a new folder")


def _earlier(folder: Path) -> dict[str, Content]:
    """Return what an earlier backup in the folder has of the storage; nothing if it is not whole."""
    try:
        return read_manifest(folder).files
    except BackupError:
        return {}


def _copy_until_consistent(
    database: Database, storage: Storage, folder: Path, known: dict[str, Content]
) -> Manifest:
    for _ in range(_MOST_COPIES):
        name = f"database-{secrets.token_hex(8)}"
        with copied_database(database, folder / name) as session:
            revision = _current_revision(session)
            keys = wanted_keys(session, time.time())
            checkpoints = _checkpoints(session, storage)
        copied = keys.union(*checkpoints.values())
        manifest = _copy_files(database, storage, folder, known, name, revision, copied)
        with database.reader() as session:
            unwanted = keys - wanted_keys(session, time.time())
        # Of a folder that is being removed, some files may have been copied and others not.
        removed = sorted(key for key in unwanted if [entry.key for entry in storage.files(key)] != [key])
        discarded = {
            job_id: {key for key in of_job - keys if not storage.exists(key)}
            for job_id, of_job in checkpoints.items()
        }
        removed += [f"jobs/{job_id}" for job_id, gone in discarded.items() if gone == checkpoints[job_id]]
        if not removed:
            return _without(manifest, set[str]().union(*discarded.values()))
        log.info("%s was deleted while the backup was made: the database is copied again", removed[0])
        known = known | manifest.files
        (folder / name).unlink()
    raise BackupError("files were deleted again and again while the backup was made: try again later")


def _current_revision(session: Session) -> str:
    revision = session.scalar(text("SELECT version_num FROM alembic_version"))
    if revision is None or not migrations.is_newest(revision):
        raise BackupError("the database's schema is not this version's: back up with the version that runs")
    return revision


def _copy_files(
    database: Database,
    storage: Storage,
    folder: Path,
    known: dict[str, Content],
    name: str,
    revision: str,
    keys: set[str],
) -> Manifest:
    created_at = time.time()
    files: dict[str, Content] = {}
    missing: list[str] = []
    for key in sorted(keys):
        found = _copy_key(storage, storage_of(folder), key, known)
        if found is None:
            missing.append(key)
        else:
            files |= found
    return Manifest(
        version=__version__,
        revision=revision,
        created_at=created_at,
        dialect="sqlite" if database.engine.dialect.name == "sqlite" else "postgresql",
        database_name=name,
        database=_content_of(folder / name),
        files=files,
        missing=missing,
    )


def _checkpoints(session: Session, storage: Storage) -> dict[str, set[str]]:
    """Return the keys of the checkpoints that unfinished jobs can resume from, by job."""
    unfinished = select(FineTuningJob.id).where(FineTuningJob.status.not_in(FINAL_STATUSES))
    keys = {
        job_id: {entry.key for entry in storage.list(f"jobs/{job_id}/*/checkpoints/step-*")}
        for job_id in session.scalars(unfinished)
    }
    return {job_id: of_job for job_id, of_job in keys.items() if of_job}


def _without(manifest: Manifest, discarded: set[str]) -> Manifest:
    """Return the manifest without checkpoints that a trainer has replaced by newer ones meanwhile."""
    files = {
        key: content
        for key, content in manifest.files.items()
        if discarded.isdisjoint(parent.as_posix() for parent in PurePosixPath(key).parents)
    }
    missing = [key for key in manifest.missing if key not in discarded]
    return manifest.model_copy(update={"files": files, "missing": missing})


def _copy_key(
    source: Storage, target: Storage, key: str, known: dict[str, Content]
) -> dict[str, Content] | None:
    """Copy a file, or a folder of files, and return what was copied by key; None if it is not there."""
    try:
        copied = {entry.key: _copy_file(source, target, entry, known) for entry in source.files(key)}
    except FileNotFoundError:
        return None
    return copied or None


def _copy_file(source: Storage, target: Storage, entry: Entry, known: dict[str, Content]) -> Content:
    content = known.get(entry.key)
    is_old = content is not None and content.modified_ns == entry.modified_ns
    if content is not None and is_old and target.size(entry.key) == content.bytes:
        return content
    with source.open(entry.key) as file, target.incoming() as incoming:
        while block := file.read(_BLOCK_BYTES):
            incoming.write(block)
        stored = target.publish(incoming, entry.key)
    return Content(bytes=stored.bytes, sha256=stored.sha256, modified_ns=entry.modified_ns)


def _content_of(path: Path) -> Content:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Content(bytes=path.stat().st_size, sha256=digest)


def _remove_unnamed_databases(folder: Path) -> None:
    """Remove copies of the database that failed and interrupted backups have left."""
    try:
        kept = read_manifest(folder).database_name
    except BackupError:
        if (folder / NAME).exists():
            return  # it cannot be read, so it may name any of them
        kept = None
    for path in folder.glob(f"database-{'[0-9a-f]' * 16}"):
        if path.name != kept:
            path.unlink()


def _remove_rest(folder: Path, manifest: Manifest) -> None:
    """Remove files of the storage that only earlier backups needed, and what interrupted ones have left."""
    for path in (folder / "tmp").glob("[0-9a-f]" * 32):  # manifests that were being written
        path.unlink()
    storage = storage_of(folder)
    for entry in storage.files(""):
        if entry.key not in manifest.files:
            storage.remove(entry.key)
    for path in sorted(
        (folder / "storage").rglob("*"), reverse=True
    ):  # what a folder holds before the folder
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
