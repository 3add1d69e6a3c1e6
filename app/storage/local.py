"""A storage in a local folder, or one that several machines mount."""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from app.core.errors import StorageFullError
from app.storage.incoming import IncomingFile, IncomingFolder, StoredFile


class LocalStorage:
    """Keeps each key as a path under one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def path(self, key: str) -> Path:
        """Returns the path of the key's file or folder on this machine.

        Raises:
            ValueError: the key points outside the storage.
        """
        path = (self._root / key).absolute()
        if ".." in Path(key).parts or not path.is_relative_to(self._root):
            raise ValueError(f"not a storage key: {key!r}")
        return path

    def key(self, path: Path) -> str:
        """Returns the key of a path inside the storage.

        Raises:
            ValueError: the path is outside the storage.
        """
        return path.absolute().relative_to(self._root).as_posix()

    @contextmanager
    def incoming(self) -> Generator[IncomingFile]:
        """Opens a new file to write; it is discarded unless it is published before the block ends.

        Raises:
            StorageFullError: no space is left.
        """
        with _raise_if_full():
            incoming = IncomingFile(self._temporary())
            try:
                yield incoming
            finally:
                incoming.discard()

    @contextmanager
    def incoming_folder(self) -> Generator[IncomingFolder]:
        """Opens a new folder to fill; it is discarded unless it is published before the block ends.

        Raises:
            StorageFullError: no space is left.
        """
        with _raise_if_full():
            incoming = IncomingFolder(self._temporary())
            try:
                yield incoming
            finally:
                incoming.discard()

    def publish(self, incoming: IncomingFile, key: str) -> StoredFile:
        """Publishes an incoming file under a key; atomically replaces the file that has it already."""
        return incoming.publish(key, self.path(key))

    def publish_folder(self, incoming: IncomingFolder, key: str) -> None:
        """Publishes an incoming folder under a key."""
        incoming.publish(self.path(key))

    def write(self, key: str, content: bytes) -> StoredFile:
        """Stores a small file at once."""
        with self.incoming() as incoming:
            incoming.write(content)
            return self.publish(incoming, key)

    def free_bytes(self) -> int:
        """The space that is left on the folder's file system, in bytes."""
        self._root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self._root).free

    def size(self, key: str) -> int:
        """The bytes of a file, or of all files in a folder; 0 if there is neither."""
        path = self.path(key)
        files = (each for each in path.rglob("*") if each.is_file()) if path.is_dir() else (path,)
        return sum(each.stat().st_size for each in files if each.exists())

    def remove_folder(self, key: str) -> None:
        """Removes a folder and its contents as far as that is possible; there may be no such folder."""
        shutil.rmtree(self.path(key), ignore_errors=True)

    def _temporary(self) -> Path:
        folder = self._root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / secrets.token_hex(16)


@contextmanager
def _raise_if_full() -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError("The storage is full; nothing was kept.", code="storage_full") from error
        raise
