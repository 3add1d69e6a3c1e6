"""A storage in a folder, which several machines may share."""

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


@contextmanager
def _full_storage_named() -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError("The storage is full; nothing was kept.", code="storage_full") from error
        raise
