"""Prepares base models of the catalogue on this machine, and puts them into the bucket if there is one."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from app.base_models.files import unready
from app.base_models.stored import StoredBases
from app.base_models.workspace import workspace
from app.core.database import Database
from app.core.errors import ConflictError
from app.core.settings import BaseModelEntry, Settings
from app.storage import open_storage
from workers.base_models.errors import BaseModelError
from workers.base_models.preparation import pull


def obtain(settings: Settings, entry: BaseModelEntry, say: Callable[[str], None]) -> None:
    """Prepare a base model on this machine: from the bucket if it is there, else from its source.

    What the bucket did not have yet is put there.

    Raises:
        BaseModelError: the model cannot be obtained, or cannot be trained and served.
        ConflictError: this machine and the bucket have different files under its name.
    """
    if not settings.storage_bucket:
        pull(entry, settings.base_model_dir(entry), say)
        return
    database = Database(settings.sqlalchemy_url)
    try:
        bases = StoredBases(settings, database, open_storage(settings))
        was_here = unready(settings.base_model_dir(entry)) is None
        if not was_here and fetch(bases, entry):
            say(f"{entry.name}: fetched from the storage")
            return
        pull(entry, settings.base_model_dir(entry), say)
        try:
            _publish(database, bases, entry, say)
        except ConflictError:
            if was_here:
                raise
            # Another machine was faster, and its files differ a little.
            _remove(settings.base_model_dir(entry))
            fetch(bases, entry)
            say(f"{entry.name}: fetched from the storage, where another machine has put it meanwhile")
    finally:
        database.dispose()


def fetch(bases: StoredBases, entry: BaseModelEntry) -> bool:
    """Fetch a base model from the bucket, and return whether it is on this machine now.

    Raises:
        BaseModelError: the bucket cannot be reached, or it has arrived damaged, or cannot be written.
    """
    try:
        return bases.fetch(entry, threading.Event())
    except OSError as error:
        raise BaseModelError(
            f"{entry.name} cannot be fetched from the storage: {error}\n"
            "What has arrived is kept: run the command again to go on."
        ) from error


def _remove(folder: Path) -> None:
    """Remove a prepared folder, which has another name before any of its files is gone."""
    with workspace(folder, lambda: None) as scratch:
        folder.rename(scratch / "replaced")
        shutil.rmtree(scratch)


def _publish(
    database: Database, bases: StoredBases, entry: BaseModelEntry, say: Callable[[str], None]
) -> None:
    stored = bases.upload(entry, say)
    with database.writer() as session:
        bases.record(session, stored)
    say(f"{entry.name}: in the storage, for all machines")
