"""Where large things are: immutable files under one root, complete or not there at all.

A local (or shared) folder now. Callers name things by key (`adapters/…`), or let their content name
them (`objects/…`), so that an object store can stand behind the same methods.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.core.errors import StorageFullError

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


class LocalStorage:
    """Files in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def path(self, key: str) -> Path:
        """Where the key's file or folder is on this machine.

        Raises:
            ValueError: the key points outside the storage.
        """
        path = (self._root / key).absolute()
        if ".." in Path(key).parts or not path.is_relative_to(self._root):
            raise ValueError(f"not a storage key: {key!r}")
        return path

    def key(self, path: Path) -> str:
        """The key of a path inside the storage.

        Raises:
            ValueError: the path is outside the storage.
        """
        return path.absolute().relative_to(self._root).as_posix()

    @contextmanager
    def incoming(self) -> Generator[IncomingFile]:
        """A file to write; what is not published when the block ends leaves nothing behind.

        Raises:
            StorageFullError: there is no room left.
        """
        with _full_storage_named():
            incoming = IncomingFile(self._temporary())
            try:
                yield incoming
            finally:
                incoming.discard()

    @contextmanager
    def incoming_folder(self) -> Generator[IncomingFolder]:
        """A folder to fill; what is not published when the block ends leaves nothing behind.

        Raises:
            StorageFullError: there is no room left.
        """
        with _full_storage_named():
            incoming = IncomingFolder(self._temporary())
            try:
                yield incoming
            finally:
                incoming.discard()

    def publish(self, incoming: IncomingFile, key: str) -> StoredFile:
        """Gives an incoming file its key; a file that has it already makes room in the same instant."""
        return incoming.publish(key, self.path(key))

    def publish_folder(self, incoming: IncomingFolder, key: str) -> None:
        """Gives an incoming folder its key."""
        incoming.publish(self.path(key))

    def write(self, key: str, content: bytes) -> StoredFile:
        """A small file in one go."""
        with self.incoming() as incoming:
            incoming.write(content)
            return self.publish(incoming, key)

    def remove_folder(self, key: str) -> None:
        """Removes a folder and what is in it, if it is there."""
        shutil.rmtree(self.path(key), ignore_errors=True)

    def _temporary(self) -> Path:
        folder = self._root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / secrets.token_hex(16)


def object_key(sha256: str) -> str:
    """Where the bytes with that SHA-256 are, once for all files that have them."""
    return f"objects/{sha256[:2]}/{sha256}"


def _rename(temporary: Path, target: Path) -> None:
    """Gives what is durable its name, durably."""
    if not target.parent.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        fsync_folder(target.parent.parent)
    temporary.rename(target)
    fsync_folder(target.parent)


@contextmanager
def _full_storage_named() -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError("The storage is full; nothing was kept.", code="storage_full") from error
        raise


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
