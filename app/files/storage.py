"""Where large things are: immutable files under one root, complete or not there at all.

A local (or shared) folder now. Callers name things by key (`files/file-…`), so that an object
store can stand behind the same methods.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
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
        folder = self._root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        incoming = IncomingFile(folder / secrets.token_hex(16))
        try:
            yield incoming
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFullError(
                    "The storage is full; nothing was kept.", code="storage_full"
                ) from error
            raise
        finally:
            incoming.discard()

    def publish(self, incoming: IncomingFile, key: str) -> StoredFile:
        """Gives an incoming file its key."""
        return incoming.publish(key, self.path(key))

    def write(self, key: str, content: bytes) -> StoredFile:
        """A small file in one go."""
        with self.incoming() as incoming:
            incoming.write(content)
            return self.publish(incoming, key)


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
