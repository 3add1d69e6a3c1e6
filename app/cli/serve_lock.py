"""The lock by which one `toque serve` has a data folder to itself."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

_NAME = "serve.lock"


class FolderInUseError(Exception):
    """Another `toque serve` runs on the folder; the message says which."""


class ServeLock:
    """A data folder that belongs to this process until it ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, which must exist.

        Raises:
            FolderInUseError: another process has it.
            OSError: the folder cannot be written to.
        """
        self._path = folder / _NAME
        self._lock = FileLock(self._path)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            holder = self._path.read_text("utf-8").strip() or "it is just starting"
            raise FolderInUseError(
                f"another `toque serve` runs on {folder}: {holder}; stop it, or choose another --data-dir"
            ) from None
        self._path.write_text(f"process {os.getpid()}\n", "utf-8")

    def announce(self, address: str) -> None:
        """Let others who want the folder know at which address this one can be reached."""
        self._path.write_text(f"{address}, process {os.getpid()}\n", "utf-8")
