"""Copies, on this machine, of what is in a bucket: complete, bounded in size, and shared by all processes.

A copy is there once it has its name. Whoever uses one holds a shared lock on it (`flock`), which ends with
the process.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

log = logging.getLogger("toque.storage")

KEPT_SECONDS = 900.0
"""A copy stays for so long after it was asked for: vLLM may load an adapter long after its request came."""
_LEFT_SECONDS = 24 * 3600.0
"""From this age on, what is half written was left by a process that died."""


class Cache:
    """A folder of copies."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root.absolute()
        self._max_bytes = max_bytes
        self._copies, self._temporary = self._root / "copies", self._root / "tmp"
        self._locks, self._workspaces = self._root / "locks", self._root / "work"
        self._counting = threading.Lock()
        self._budget = 0
        """The bytes that may be added before the copies are counted again."""

    @contextmanager
    def copy(self, key: str, fetch: Callable[[Path], int]) -> Generator[Path]:
        """Yield the key's copy, which stays until the block ends. Of several callers at once, one fetches it.

        Args:
            key: what is copied.
            fetch: makes the copy at a path and returns its size in bytes; called if there is none.

        Raises:
            OSError: what `fetch` raises, or this machine has no room.
        """
        path = self._copies / quote(key, safe="")
        if (pin := _pin(path)) is None:
            with self._locked(key):
                while (pin := _pin(path)) is None:
                    self._add(path, fetch)
        try:
            os.utime(path)
            yield path
        finally:
            os.close(pin)

    def discard(self, key: str) -> None:
        """Remove the key's copy, whoever uses it: it is damaged, or no longer in the storage."""
        self._remove(self._copies / quote(key, safe=""))

    @contextmanager
    def workspace(self) -> Generator[Path]:
        """Yield an empty folder, removed when the block ends; those of dead processes are removed at once."""
        self._workspaces.mkdir(parents=True, exist_ok=True)
        for left in self._workspaces.iterdir():
            with _sole_use(left) as is_left:
                if is_left:
                    shutil.rmtree(left, ignore_errors=True)
        aside = self.temporary()
        aside.mkdir()
        pin = os.open(aside, os.O_RDONLY)
        fcntl.flock(pin, fcntl.LOCK_SH)  # before others can see it
        folder = self._workspaces / aside.name
        aside.rename(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(pin)

    def temporary(self) -> Path:
        """Return a new name for what is written on this machine until it is complete."""
        self._temporary.mkdir(parents=True, exist_ok=True)
        return self._temporary / secrets.token_hex(16)

    def holds(self, path: Path) -> bool:
        """Whether a path is inside the cache."""
        return path.resolve().is_relative_to(self._root.resolve())

    def free_bytes(self) -> int:
        """The space that is left on the file system, in bytes."""
        self._root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self._root).free

    def _add(self, path: Path, fetch: Callable[[Path], int]) -> None:
        temporary = self.temporary()
        try:
            added = fetch(temporary)
            self._copies.mkdir(parents=True, exist_ok=True)
            temporary.rename(path)
        finally:
            _delete(temporary)
        with self._counting:
            self._budget -= added
            if self._budget < 0:
                self._budget = self._make_room()

    def _make_room(self) -> int:
        """Remove the copies that were asked for longest ago, if that is needed and nobody uses them.

        Returns:
            The bytes that may be added before this is to be done again; other processes add some, too.
        """
        now = time.time()
        found = sorted((path.lstat().st_mtime, path) for path in self._copies.iterdir())
        sizes = {path: _size(path) for _, path in found}
        total = sum(sizes.values())
        for used_at, path in found:
            if total <= self._max_bytes or used_at > now - KEPT_SECONDS:
                break
            with _sole_use(path) as is_unused:
                if is_unused:
                    self._remove(path)
                    total -= sizes[path]
        if total > self._max_bytes:
            log.warning(
                "the cache has %d bytes: all were asked for lately (TOQUE_STORAGE_CACHE_BYTES)", total
            )
        for left in self._temporary.iterdir():
            with suppress(FileNotFoundError):
                if left.lstat().st_mtime < now - _LEFT_SECONDS:
                    _delete(left)
        return min(max(self._max_bytes - total, 0), self._max_bytes // 8)

    def _remove(self, path: Path) -> None:
        aside = self.temporary()
        with suppress(FileNotFoundError):
            path.rename(aside)  # in one step, as nobody may find half of it
        _delete(aside)

    @contextmanager
    def _locked(self, key: str) -> Generator[None]:
        """Wait for the lock of those keys whose hash begins alike."""
        self._locks.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(key.encode()).hexdigest()[:3]
        lock = os.open(self._locks / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _pin(path: Path) -> int | None:
    """Keep the copy from being removed until the returned descriptor is closed; None if there is no copy."""
    try:
        pin = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    fcntl.flock(pin, fcntl.LOCK_SH)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(pin), path.stat()):
            return pin
    os.close(pin)  # it was removed in between
    return None


@contextmanager
def _sole_use(path: Path) -> Generator[bool]:
    """Yield whether nobody uses the path; nobody begins to before the block ends."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        is_unused = False
    else:
        is_unused = True
    try:
        yield is_unused
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for each in files:
        with suppress(FileNotFoundError):
            total += each.lstat().st_size
    return total


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
