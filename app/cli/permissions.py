"""Keeps what the service stores from other users of the machine: the database holds the engines' keys."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from app.core.settings import Settings

log = logging.getLogger("toque.permissions")


def restrict_permissions(settings: Settings) -> None:
    """Apply `TOQUE_UMASK` to what this process and its children create, and to what is there already."""
    umask = int(settings.umask, 8)
    os.umask(umask)
    for path in _private(settings):
        try:
            found = path.stat()
        except OSError:
            continue  # it is created later
        mode = stat.S_IMODE(found.st_mode)
        if not mode & umask or mode & stat.S_ISVTX:  # a folder like /tmp belongs to everybody
            continue
        try:
            path.chmod(mode & ~umask)
        except OSError as error:
            log.warning("%s is open to other users (mode %o), and stays so: %s", path, mode, error.strerror)
        else:
            log.warning("%s was open to other users (mode %o): its mode is now %o", path, mode, mode & ~umask)


def _private(settings: Settings) -> Iterator[Path]:
    """Yield the folders and the files of the embedded database, whether they are there or not."""
    yield settings.data_dir
    yield settings.storage_cache_root if settings.storage_bucket else settings.storage_root
    for suffix in ("", "-wal", "-shm"):
        yield settings.data_dir / f"toque.db{suffix}"
