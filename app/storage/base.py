"""What every storage does: it holds immutable files and folders, each complete or not there at all.

Callers name things by key (`adapters/…`), or let their content name them (`objects/…`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from app.storage.incoming import IncomingFile, IncomingFolder, StoredFile


class Storage(Protocol):
    """A place for large, immutable things."""

    def path(self, key: str) -> Path:
        """Where the key's file or folder is on this machine.

        Raises:
            ValueError: the key points outside the storage.
        """
        ...

    def key(self, path: Path) -> str:
        """The key of a path inside the storage.

        Raises:
            ValueError: the path is outside the storage.
        """
        ...

    def incoming(self) -> AbstractContextManager[IncomingFile]:
        """A file to write; what is not published when the block ends leaves nothing behind.

        Raises:
            StorageFullError: there is no room left.
        """
        ...

    def incoming_folder(self) -> AbstractContextManager[IncomingFolder]:
        """A folder to fill; what is not published when the block ends leaves nothing behind.

        Raises:
            StorageFullError: there is no room left.
        """
        ...

    def publish(self, incoming: IncomingFile, key: str) -> StoredFile:
        """Gives an incoming file its key, in place of a file that has it already."""
        ...

    def publish_folder(self, incoming: IncomingFolder, key: str) -> None:
        """Gives an incoming folder its key."""
        ...

    def write(self, key: str, content: bytes) -> StoredFile:
        """Stores a small file in one go."""
        ...

    def remove_folder(self, key: str) -> None:
        """Removes a folder and what is in it, if it is there."""
        ...


def object_key(sha256: str) -> str:
    """Where the bytes with that SHA-256 are, once for all files that have them."""
    return f"objects/{sha256[:2]}/{sha256}"
