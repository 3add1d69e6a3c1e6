"""Files and folders that are being written, under temporary names until they are complete."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.core.fsync import fsync_folder

_WRITEBACK_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is stored durably under its key."""

    key: str
    bytes: int
    sha256: str


class IncomingFile:
    """A file that is written, and hashed, under a temporary name."""

    def __init__(self, temporary: Path) -> None:
        self._temporary = temporary
        self._file = temporary.open("xb")
        self._digest = hashlib.sha256()
        self._written_back = 0
        self.bytes = 0

    def write(self, chunk: bytes | memoryview) -> None:
        """Appends the chunk."""
        self._file.write(chunk)
        self._digest.update(chunk)
        self.bytes += len(chunk)
        if self.bytes - self._written_back >= _WRITEBACK_BYTES:
            self._begin_writeback()

    @property
    def sha256(self) -> str:
        """Returns the SHA-256 of the bytes so far, in hexadecimal."""
        return self._digest.hexdigest()

    def finish(self) -> Path:
        """Makes the bytes durable under the temporary name and returns its path; no more can be written."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return self._temporary

    def _begin_writeback(self) -> None:
        """Starts writing dirty pages to disk, so that the final fsync has little left to do.

        On Linux this advice starts writeback (`generic_fadvise` in mm/fadvise.c), and pages stay in the
        cache until they are on disk.
        """
        self._file.flush()
        if sys.platform == "linux":
            length = self.bytes - self._written_back
            os.posix_fadvise(self._file.fileno(), self._written_back, length, os.POSIX_FADV_DONTNEED)
        self._written_back = self.bytes

    def publish(self, key: str, target: Path) -> StoredFile:
        """Makes the bytes durable, then renames the file to its target."""
        self.finish()
        _rename(self._temporary, target)
        return StoredFile(key, self.bytes, self.sha256)

    def discard(self) -> None:
        """Removes the temporary name and what it holds; does nothing after `publish`."""
        with suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)


class IncomingFolder:
    """A folder that is filled under a temporary name."""

    def __init__(self, temporary: Path) -> None:
        temporary.mkdir()
        self.path = temporary
        self._files: dict[str, IncomingFile] = {}

    def file(self, name: str) -> IncomingFile:
        """Opens a file in the folder for writing, in place of an earlier one of that name."""
        if name in self._files:
            self._files[name].discard()
        self._files[name] = IncomingFile(self.path / name)
        return self._files[name]

    def file_sha256(self, name: str) -> str:
        """Returns the SHA-256 of what was written to the file, in hexadecimal."""
        return self._files[name].sha256

    def finish(self) -> Path:
        """Makes the files durable under the temporary name, and returns its path."""
        for file in self._files.values():
            file.finish()
        return self.path

    def publish(self, target: Path) -> None:
        """Writes the checksums to `manifest.json` last, then renames the folder to its target."""
        manifest = {"sha256": {name: file.sha256 for name, file in self._files.items()}}
        self.file("manifest.json").write(json.dumps(manifest, indent=2).encode())
        self.finish()
        fsync_folder(self.path)
        _rename(self.path, target)

    def discard(self) -> None:
        """Removes the temporary name and what it holds; does nothing after `publish`."""
        for file in self._files.values():
            file.discard()
        shutil.rmtree(self.path, ignore_errors=True)


def _rename(temporary: Path, target: Path) -> None:
    """Renames what is durable, and makes the new name durable too."""
    if not target.parent.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        fsync_folder(target.parent.parent)
    temporary.rename(target)
    fsync_folder(target.parent)
