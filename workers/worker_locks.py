"""A lock that each worker holds while it lives, by which others on its machine know at once that it has died.

Such a lock (flock(2)) is the kernel's, and ends with its process, however that ends. The files are in the
memory of this machine, or container, and never on a file system that machines share: a file that nobody has
locked is proof of a death. Where there is no file, the worker's lease tells, later.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger("toque.worker")

_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder in it has to be ours, see below
_ABANDONED_SECONDS = 24 * 3600.0
"""A deployment none of whose workers has started or ended for this long, and of which none lives, is gone."""


class WorkerLocks:
    """The locks of the workers on this machine that share a database."""

    def __init__(self, database_url: str, worker_id: str) -> None:
        """Lock this worker's own, until the process ends or `release`."""
        deployment = hashlib.sha256(database_url.encode()).hexdigest()[:16]
        ours = f"toque-workers-{os.geteuid()}-"
        self._folder = _MEMORY / f"{ours}{deployment}"
        self._worker_id = worker_id
        for folder in _MEMORY.glob(f"{ours}*"):
            _remove_abandoned(folder)
        self._lock = FileLock(self._path(worker_id))
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._is_ours = self._folder.stat().st_uid == os.geteuid()
            if self._is_ours:
                self._lock.acquire()
        except OSError as error:
            log.info("a worker that dies here is known by its lease only: %s", error)
            self._is_ours = False

    def dead_workers(self) -> list[str]:
        """Return the ids of workers that have died on this machine, until they are forgotten."""
        if not self._is_ours:
            return []
        others = [path for path in self._folder.glob("*.lock") if path.stem != self._worker_id]
        return [path.stem for path in others if _is_free(path)]

    def forget(self, worker_ids: Collection[str]) -> None:
        """Remove what is left of workers that have died."""
        for worker_id in worker_ids:
            self._path(worker_id).unlink(missing_ok=True)

    def release(self) -> None:
        """Remove this worker's lock, as it ends with nothing left to do."""
        if self._is_ours:
            self.forget([self._worker_id])
            self._lock.release()
            with suppress(OSError):  # others have locks in it
                self._folder.rmdir()

    def _path(self, worker_id: str) -> Path:
        return self._folder / f"{worker_id}.lock"


def _is_free(lock: Path) -> bool:
    """Whether nobody holds the lock: its worker has died."""
    try:
        with FileLock(lock, timeout=0):
            return True
    except (Timeout, OSError):
        return False


def _remove_abandoned(folder: Path) -> None:
    """Remove the folder of a deployment whose workers were killed long ago, and which had none since."""
    with suppress(OSError):  # somebody else's, or already gone
        locks = list(folder.glob("*.lock"))
        if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS and all(map(_is_free, locks)):
            for lock in locks:
                lock.unlink(missing_ok=True)
            folder.rmdir()
