"""Files and folders on their way into the storage: under a temporary name until they are complete."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_WRITEBACK_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is durable under its key."""

    key: str
    bytes: int
    sha256: str


class IncomingFile:
    """A file being written under a temporary name, hashed as it goes."""

    def __init__(self, temporary: Path) -> None:
        self._temporary = temporary
        self._file = temporary.open("xb")
        self._digest = hashlib.sha256()
        self._on_its_way = 0
        self.bytes = 0

    def write(self, chunk: bytes | memoryview) -> None:
        """Appends the chunk."""
        self._file.write(chunk)
        self._digest.update(chunk)
        self.bytes += len(chunk)
        if self.bytes - self._on_its_way >= _WRITEBACK_BYTES:
            self._begin_writeback()

    @property
    def sha256(self) -> str:
        """Of the bytes so far, in hexadecimal."""
        return self._digest.hexdigest()

    def finish(self) -> Path:
        """Makes the bytes durable, under the temporary name, for reading; nothing more can be written."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return self._temporary

    def _begin_writeback(self) -> None:
        """Has the disk begin now with what it would otherwise get all at once, when the file is finished.

        Linux takes the advice that way (`generic_fadvise` in its mm/fadvise.c), and keeps what is on its
        way to the disk in memory until it is there.
        """
        self._file.flush()
        if sys.platform == "linux":
            length = self.bytes - self._on_its_way
            os.posix_fadvise(self._file.fileno(), self._on_its_way, length, os.POSIX_FADV_DONTNEED)
        self._on_its_way = self.bytes

    def publish(self, key: str, target: Path) -> StoredFile:
        """Gives the bytes, once they are durable, their name."""
        self.finish()
        _rename(self._temporary, target)
        return StoredFile(key, self.bytes, self.sha256)

    def discard(self) -> None:
        """Forgets what was not published."""
        with suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)


class IncomingFolder:
    """A folder being filled under a temporary name."""

    def __init__(self, temporary: Path) -> None:
        temporary.mkdir()
        self.path = temporary
        self._files: dict[str, IncomingFile] = {}

    def file(self, name: str) -> IncomingFile:
        """A file of it to write; it takes the place of one that is there."""
        if name in self._files:
            self._files[name].discard()
        self._files[name] = IncomingFile(self.path / name)
        return self._files[name]

    def file_sha256(self, name: str) -> str:
        """Of what was written to that file, in hexadecimal."""
        return self._files[name].sha256

    def finish(self) -> Path:
        """Makes its files durable, under the temporary name, for reading."""
        for file in self._files.values():
            file.finish()
        return self.path

    def publish(self, target: Path) -> None:
        """Writes the files' checksums last, as `manifest.json`, and gives the folder its name."""
        manifest = {"sha256": {name: file.sha256 for name, file in self._files.items()}}
        self.file("manifest.json").write(json.dumps(manifest, indent=2).encode())
        self.finish()
        fsync_folder(self.path)
        _rename(self.path, target)

    def discard(self) -> None:
        """Forgets what was not published."""
        for file in self._files.values():
            file.discard()
        shutil.rmtree(self.path, ignore_errors=True)


def _rename(temporary: Path, target: Path) -> None:
    """Gives what is durable its name, durably."""
    if not target.parent.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        fsync_folder(target.parent.parent)
    temporary.rename(target)
    fsync_folder(target.parent)


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
