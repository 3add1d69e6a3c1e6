"""Files and folders that are being written, under temporary names until they are complete."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.core.fsync import fsync_folder
from app.storage.manifest import MANIFEST, write_sums

_WRITEBACK_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is stored durably under its key."""

    key: str
    bytes: int
    sha256: str


class IncomingFile(ABC):
    """A file that is written, and hashed, under a temporary name."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, chunk: bytes | memoryview) -> None:
        """Append the chunk."""
        self._append(chunk)
        self._digest.update(chunk)
        self.bytes += len(chunk)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the bytes so far, in hexadecimal."""
        return self._digest.hexdigest()

    @abstractmethod
    def finish(self) -> None:
        """Make the bytes durable under the temporary name; no more can be written."""

    @abstractmethod
    def discard(self) -> None:
        """Remove the temporary name and what it holds; does nothing once it has another name."""

    @abstractmethod
    def _append(self, chunk: bytes | memoryview) -> None: ...


class LocalIncomingFile(IncomingFile):
    """A file that is written to a folder of this machine."""

    def __init__(self, temporary: Path) -> None:
        super().__init__()
        self.path = temporary
        self._file = temporary.open("xb")
        self._written = self._written_back = 0

    def finish(self) -> None:
        """Make the bytes durable under the temporary name; no more can be written."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def discard(self) -> None:
        """Remove the temporary name and what it holds; does nothing once it has another name."""
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _append(self, chunk: bytes | memoryview) -> None:
        self._file.write(chunk)
        self._written += len(chunk)
        if self._written - self._written_back >= _WRITEBACK_BYTES:
            self._begin_writeback()

    def _begin_writeback(self) -> None:
        """Start writing dirty pages to disk, so that the final fsync has little left to do.

        On Linux this advice starts writeback (`generic_fadvise` in mm/fadvise.c), and pages stay in the
        cache until they are on disk.
        """
        self._file.flush()
        if sys.platform == "linux":
            length = self._written - self._written_back
            os.posix_fadvise(self._file.fileno(), self._written_back, length, os.POSIX_FADV_DONTNEED)
        self._written_back = self._written


class IncomingFolder:
    """A folder that is filled on this machine under a temporary name."""

    def __init__(self, temporary: Path) -> None:
        temporary.mkdir()
        self.path = temporary
        self._files: dict[str, LocalIncomingFile] = {}

    def file(self, name: str) -> IncomingFile:
        """Open a file in the folder for writing, in place of an earlier one of that name."""
        if name in self._files:
            self._files[name].discard()
        self._files[name] = LocalIncomingFile(self.path / name)
        return self._files[name]

    def file_sha256(self, name: str) -> str:
        """Return the SHA-256 of what was written to the file, in hexadecimal."""
        return self._files[name].sha256

    def finish(self) -> Path:
        """Make the files durable under the temporary name, and return its path."""
        for file in self._files.values():
            file.finish()
        return self.path

    def complete(self) -> Path:
        """Write the checksums to `manifest.json` last, and return the path of what can be published."""
        sums = {name: file.sha256 for name, file in self._files.items()}
        self.file(MANIFEST).write(write_sums(sums))
        self.finish()
        fsync_folder(self.path)
        return self.path

    def discard(self) -> None:
        """Remove the temporary name and what it holds; does nothing once it has another name."""
        for file in self._files.values():
            file.discard()
        shutil.rmtree(self.path, ignore_errors=True)


def rename_durably(temporary: Path, target: Path) -> None:
    """Rename what is durable, and make the new name durable too."""
    if not target.parent.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        fsync_folder(target.parent.parent)
    temporary.rename(target)
    fsync_folder(target.parent)
