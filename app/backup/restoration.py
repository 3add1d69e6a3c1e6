"""Putting a backup back where there is nothing yet."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import delete, select, update
from sqlalchemy.engine import make_url

from app.backup.database_copy import require_no_database, restore_postgresql, sqlite_path
from app.backup.errors import BackupError
from app.backup.manifest import Manifest, find_damage, read_manifest, storage_of
from app.completions.models import Engine, EngineDemand, SharedDevice
from app.core import migrations
from app.core.database import Database
from app.core.fsync import fsync_folder
from app.core.settings import Settings
from app.fine_tuning import queue
from app.fine_tuning.models import FineTuningJob, Worker
from app.models.catalogue.models import StoredBaseModel
from app.storage import open_storage
from app.storage.base import Storage
from app.uploads.models import Upload

_BLOCK_BYTES = 4 * 2**20


def restore_backup(settings: Settings, folder: Path) -> Manifest:
    """Restore a backup into the database and the storage of the settings, which must be empty.

    All of the backup is read before anything is written. The database comes last, so that what was
    interrupted is no deployment; its schema is brought to this version's.

    Raises:
        BackupError: the backup is damaged or from a newer version, or the target is not empty.
        StorageFullError: there is no room.
        OSError: the target cannot be written to.
        sqlalchemy.exc.SQLAlchemyError: the database cannot be reached.
    """
    folder, storage = folder.absolute(), open_storage(settings)
    manifest = read_manifest(folder)
    _require_fit(settings, manifest)
    require_no_database(settings.sqlalchemy_url)
    _require_empty(storage)
    if damage := find_damage(folder, manifest):
        raise BackupError(f"the backup is damaged, and nothing was restored: {'; '.join(damage)}")
    for key, content in manifest.files.items():
        _restore_file(storage_of(folder), storage, key, content.sha256)
    dump = folder / manifest.database_name
    if manifest.dialect == "sqlite":
        _restore_sqlite(sqlite_path(make_url(settings.sqlalchemy_url)), dump)
    else:
        restore_postgresql(settings.sqlalchemy_url, dump)
        _settle(settings.sqlalchemy_url)
    return manifest


def _require_fit(settings: Settings, manifest: Manifest) -> None:
    dialect = make_url(settings.sqlalchemy_url).get_backend_name()
    if dialect != manifest.dialect:
        raise BackupError(f"the backup is of {manifest.dialect}, and TOQUE_DATABASE_URL names {dialect}")
    if not migrations.is_known(manifest.revision):
        raise BackupError(
            f"version {manifest.version} made the backup, whose schema ({manifest.revision}) is newer than "
            "this version: install that one"
        )


def _require_empty(storage: Storage) -> None:
    if found := storage.files(""):
        raise BackupError(f"the storage is not empty (it has {found[0].key}): name a new one")


def _restore_file(source: Storage, target: Storage, key: str, sha256: str) -> None:
    with source.open(key) as file, target.incoming() as incoming:
        while block := file.read(_BLOCK_BYTES):
            incoming.write(block)
        if incoming.sha256 != sha256:
            raise BackupError(f"storage/{key} has changed while it was restored; restore into a new folder")
        target.publish(incoming, key)


def _restore_sqlite(path: Path, dump: Path) -> None:
    """Make the database ready under another name, then give it its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.restoring")
    for suffix in ("", "-wal", "-shm"):
        aside.with_name(aside.name + suffix).unlink(missing_ok=True)
    with dump.open("rb") as source, aside.open("xb") as target:
        while block := source.read(_BLOCK_BYTES):
            target.write(block)
    _settle(f"sqlite:///{aside}")
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    require_no_database(
        f"sqlite:///{path}"
    )  # again: the files took long, and a service may have been started meanwhile
    os.link(aside, path)  # unlike a rename, this never replaces a file
    aside.unlink()
    fsync_folder(path.parent)


def _settle(url: str) -> None:
    """Upgrade the schema, and end what only the processes of the old deployment could go on with."""
    migrations.upgrade(url)
    database = Database(url)
    try:
        with database.writer() as session:
            # Base models are in no backup: `toque models pull` puts them into the storage again.
            for table in (Engine, EngineDemand, SharedDevice, Worker, StoredBaseModel):
                session.execute(delete(table))
            for job in session.scalars(select(FineTuningJob).where(FineTuningJob.status == "running")).all():
                queue.release(session, queue.LEASES.lease_of(job), "Restored from a backup; the job waits")
            # Their parts are in no backup: whoever was sending them starts again.
            session.execute(update(Upload).where(Upload.status == "pending").values(status="cancelled"))
    finally:
        database.dispose()
