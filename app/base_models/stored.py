"""Base models in the bucket, from which every machine can fetch them without a hub.

One is a folder `bases/<name>/<digest>/` with a manifest, which is put last. Its row in the database says
that it is there. A machine fetches it into its own folder of base models, not into the cache, and keeps it.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy.orm import Session

from app.base_models.files import SOURCE, misplaced, unready, wanted_files
from app.base_models.workspace import workspace
from app.core.database import Database, advisory_lock
from app.core.errors import ConflictError
from app.core.fsync import fsync_folder
from app.core.settings import BaseModelEntry, Settings
from app.models.catalogue import stored_base
from app.models.catalogue.models import StoredBaseModel
from app.storage.base import DamagedContentError, Storage
from app.storage.incoming import rename_durably
from app.storage.manifest import MANIFEST, read_sums, write_sums

log = logging.getLogger("toque.base_models")

_BLOCK_BYTES = 2**20
_FILES_AT_ONCE = 4


class StoredBases:
    """The base models that are in the bucket of a deployment."""

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage

    def fetch(self, entry: BaseModelEntry, stopping: threading.Event) -> bool:
        """Fetch a base model unless it is on this machine; of several processes at once, one does.

        Returns:
            Whether it is on this machine now. Otherwise the bucket does not have it, or something else is in
            its place.

        Raises:
            InterruptedError: the event was set. What has arrived is kept.
            StorageUnavailableError: the bucket cannot be reached now.
            OSError: this machine has another base model under its name, or no room for it, or a file has
                arrived damaged, or cannot be written.
        """
        target = self._settings.base_model_dir(entry)
        if unready(target) is None:
            # Without a bucket, the folder was prepared by somebody who was told.
            if self._settings.storage_bucket and (problem := misplaced(target, entry)):
                raise OSError(problem)
            return True
        if not self._settings.storage_bucket or target.exists():
            return False
        with self._database.reader() as session:
            stored = stored_base(session, entry)
        if stored is None:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        with workspace(target, lambda: _go_on(stopping)) as scratch:
            if unready(target) is not None:
                log.info("%s: %.1f MB are fetched from the storage", entry.name, stored.bytes / 1e6)
                folder = self._fetch_files(stored, scratch / stored.digest, stopping)
                (folder / SOURCE).write_text(stored.source, "utf-8")
                fsync_folder(folder)
                rename_durably(folder, target)
            shutil.rmtree(scratch)
        return True

    def upload(self, entry: BaseModelEntry, say: Callable[[str], None]) -> StoredBaseModel:
        """Put the files of a prepared base model into the bucket, its manifest last.

        Files that are there already, because an earlier upload was broken off, are not sent again.

        Raises:
            ConflictError: the bucket has other files under this name.
            StorageUnavailableError: the bucket cannot be reached now.
            OSError: a file cannot be read.
        """
        files = wanted_files(self._settings.base_model_dir(entry))
        content = write_sums({path.name: _sha256(path) for path in files})
        stored = StoredBaseModel(
            name=entry.name,
            source=entry.source,
            digest=hashlib.sha256(content).hexdigest(),
            bytes=sum(path.stat().st_size for path in files),
        )
        with self._database.reader() as session:
            if self._is_recorded(session, stored):
                return stored
        key = stored.storage_key
        for number, path in enumerate(files, 1):
            size = path.stat().st_size
            if self._storage.size(f"{key}/{path.name}") != size:
                say(f"storage: {path.name} ({size / 1e6:,.1f} MB; {number} of {len(files)})")
                self._storage.publish_file(path, f"{key}/{path.name}")
        self._storage.write(f"{key}/{MANIFEST}", content)
        return stored

    def record(self, session: Session, stored: StoredBaseModel) -> None:
        """Note that a base model was uploaded, so that every machine can fetch it.

        The lock orders this against the removal of what no row names.

        Raises:
            ConflictError: the bucket has other files under this name.
        """
        advisory_lock(session, f"bases/{stored.name}")
        if self._is_recorded(session, stored):
            return
        if self._storage.size(stored.storage_key) < stored.bytes:
            raise ConflictError(
                f"The files of '{stored.name}' were removed from the storage meanwhile: run the command "
                "again.",
                code="base_model_differs",
            )
        session.add(stored)

    def _is_recorded(self, session: Session, stored: StoredBaseModel) -> bool:
        """Whether the bucket has exactly these files.

        Raises:
            ConflictError: it has others under this name.
        """
        known = session.get(StoredBaseModel, stored.name)
        if known is None:
            return False
        if (known.digest, known.source) != (stored.digest, stored.source):
            raise ConflictError(
                f"The storage has other files as '{stored.name}' (from {known.source}), which adapters may "
                "rely on. Give this base model another name; or remove its folder here, and run "
                f"`toque models pull {stored.name}` to fetch those of the storage.",
                code="base_model_differs",
            )
        return True

    def _fetch_files(self, stored: StoredBaseModel, folder: Path, stopping: threading.Event) -> Path:
        """Fetch those files that are not in the folder yet, and return it."""
        with self._storage.open(f"{stored.storage_key}/{MANIFEST}") as file:
            content = file.read()
        if hashlib.sha256(content).hexdigest() != stored.digest:
            raise DamagedContentError(f"{stored.storage_key}/{MANIFEST} does not match its digest")
        sums = read_sums(content)
        folder.mkdir(exist_ok=True)
        _require_room(folder, stored.bytes)
        missing = [name for name in sums if not (folder / name).exists()]
        with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:

            def fetch(name: str) -> None:
                self._fetch_file(f"{stored.storage_key}/{name}", folder / name, sums[name], stopping)

            list(threads.map(fetch, missing))
        folder.chmod(0o755)
        return folder

    def _fetch_file(self, key: str, path: Path, sha256: str, stopping: threading.Event) -> None:
        """Fetch a file, which has its name once it is whole, verified and durable."""
        part = path.with_name(f"{path.name}.part")
        digest = hashlib.sha256()
        with self._storage.open(key) as source, part.open("wb") as file:
            while block := source.read(_BLOCK_BYTES):
                _go_on(stopping)
                file.write(block)
                digest.update(block)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            part.unlink()
            raise DamagedContentError(f"{key} does not match its checksum")
        part.chmod(0o644)  # as `pull` does: workers and engines of other users read it
        part.rename(path)


def _require_room(folder: Path, size: int) -> None:
    """Check that the folder can grow to so many bytes, before databases on the same disk have no room, too.

    Raises:
        OSError: it cannot.
    """
    lacking = size - sum(path.stat().st_size for path in folder.iterdir())
    if lacking > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, f"no room for {lacking / 1e6:,.1f} MB of a base model", str(folder))


def _go_on(stopping: threading.Event) -> None:
    if stopping.is_set():
        raise InterruptedError("the base model is not fetched, as the process stops")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
