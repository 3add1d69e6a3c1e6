"""The interface of a storage, which holds immutable files and folders, each complete or absent.

A key is chosen by the caller (`adapters/…`), or made of the content's hash (`objects/…`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from app.storage.incoming import IncomingFile, IncomingFolder, StoredFile


class Storage(Protocol):
    """A storage for large, immutable files and folders."""

    def path(self, key: str) -> Path:
        """Returns the path of the key's file or folder on this machine.

        Raises:
            ValueError: the key points outside the storage.
        """
        ...

    def key(self, path: Path) -> str:
        """Returns the key of a path inside the storage.

        Raises:
            ValueError: the path is outside the storage.
        """
        ...

    def incoming(self) -> AbstractContextManager[IncomingFile]:
        """Opens a new file to write; it is discarded unless it is published before the block ends.

        Raises:
            StorageFullError: no space is left.
        """
        ...

    def incoming_folder(self) -> AbstractContextManager[IncomingFolder]:
        """Opens a new folder to fill; it is discarded unless it is published before the block ends.

        Raises:
            StorageFullError: no space is left.
        """
        ...

    def publish(self, incoming: IncomingFile, key: str) -> StoredFile:
        """Publishes an incoming file under a key, and replaces the file that has the key already."""
        ...

    def publish_folder(self, incoming: IncomingFolder, key: str) -> None:
        """Publishes an incoming folder under a key."""
        ...

    def write(self, key: str, content: bytes) -> StoredFile:
        """Stores a small file at once."""
        ...

    def free_bytes(self) -> int:
        """The space that is left, in bytes."""
        ...

    def size(self, key: str) -> int:
        """The bytes of a file, or of all files in a folder; 0 if there is neither."""
        ...

    def remove_folder(self, key: str) -> None:
        """Removes a folder and its contents; does nothing if the folder does not exist."""
        ...


def object_key(sha256: str) -> str:
    """Returns the key under which content with that SHA-256 is stored, once for all files that have it."""
    return f"objects/{sha256[:2]}/{sha256}"
