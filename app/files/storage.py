"""Where large things are: immutable files under one root, complete or not there at all.

A local (or shared) folder now. Callers name things by key (`files/file-…`), so that an object
store can stand behind the same methods.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.errors import StorageFullError


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
        self._file = temporary.open("xb", buffering=2**20)
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, chunk: bytes | memoryview) -> None:
        """Appends the chunk."""
        self._file.write(chunk)
        self._digest.update(chunk)
        self.bytes += len(chunk)

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

    def publish(self, key: str, target: Path) -> StoredFile:
        """Gives the bytes, once they are durable, their name."""
        self.finish()
        target.parent.mkdir(parents=True, exist_ok=True)
        self._temporary.rename(target)
        fsync_folder(target.parent)
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
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path.rename(target)
        fsync_folder(target.parent)

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
        """Gives an incoming file its key."""
        return incoming.publish(key, self.path(key))

    def publish_folder(self, incoming: IncomingFolder, key: str) -> None:
        """Gives an incoming folder its key."""
        incoming.publish(self.path(key))

    def write(self, key: str, content: bytes) -> StoredFile:
        """A small file in one go."""
        with self.incoming() as incoming:
            incoming.write(content)
            return self.publish(incoming, key)

    def _temporary(self) -> Path:
        folder = self._root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / secrets.token_hex(16)


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
