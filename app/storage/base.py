"""The interface of a storage, which holds immutable files and folders, each complete or absent.

A key is chosen by the caller (`adapters/…`), or made of the content's hash (`objects/…`). A folder is
published with a `manifest.json` of its files' SHA-256, and is there once that is.

Every method raises `StorageUnavailableError` while the storage cannot be reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from app.core.errors import UnavailableError
from app.storage.incoming import IncomingFile, IncomingFolder, StoredFile


class StorageUnavailableError(UnavailableError, OSError):
    """503: the storage cannot be reached now. It is an `OSError`, as for a folder that is not mounted."""

    def __init__(self) -> None:
        message = "The storage cannot be reached now."
        super().__init__(message, code="storage_unavailable")
        self.strerror = message


class DamagedContentError(OSError):
    """What the storage has is not what was stored, by its checksum; the message says which file."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a folder in the storage."""

    key: str
    modified_ns: int
    """When it was stored, in nanoseconds since the epoch."""
    bytes: int | None = None
    """The size of a file; None for a folder."""


class Storage(Protocol):
    """A storage for large, immutable files and folders."""

    is_cached: bool
    """Whether `local` makes copies, which may be removed once nobody uses them."""

    def open(self, key: str) -> BufferedReader:
        """Open a file to read it from its beginning to its end.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def local(self, key: str) -> AbstractContextManager[Path]:
        """Have a file or a folder on this machine, complete, until the block ends.

        Raises:
            FileNotFoundError: it is not in the storage.
            DamagedContentError: it is not as it was stored.
            ValueError: the key points outside the storage.
        """
        ...

    def workspace(self, key: str) -> AbstractContextManager[Path]:
        """Have a folder on this machine in which to build folders that are published below the key."""
        ...

    def incoming(self) -> AbstractContextManager[IncomingFile]:
        """Open a new file to write; it is discarded unless it is published before the block ends.

        Raises:
            StorageFullError: no space is left.
        """
        ...

    def incoming_folder(self) -> AbstractContextManager[IncomingFolder]:
        """Open a new folder to fill; it is discarded unless it is published before the block ends.

        Raises:
            StorageFullError: no space is left.
        """
        ...

    def publish(self, incoming: IncomingFile, key: str) -> StoredFile:
        """Publish an incoming file under a key, and replace the file that has the key already."""
        ...

    def publish_file(self, path: Path, key: str) -> None:
        """Publish a file of this machine, which stays, under a key."""
        ...

    def publish_folder(self, folder: Path, key: str) -> None:
        """Publish a folder of this machine, which has a manifest, under a key."""
        ...

    def write(self, key: str, content: bytes) -> StoredFile:
        """Store a small file at once."""
        ...

    def signed_url(self, key: str, method: Literal["GET", "PUT"], seconds: int) -> str | None:
        """Return a URL that lets anybody read or write a file for that time; None where there are no URLs.

        Whoever writes may write any number of bytes.
        """
        ...

    def exists(self, key: str) -> bool:
        """Whether there is such a file or folder."""
        ...

    def size(self, key: str) -> int:
        """The bytes of a file, or of all files in a folder; 0 if there is neither."""
        ...

    def list(self, pattern: str) -> Iterator[Entry]:
        """Yield the files and folders whose keys match, segment by segment: `jobs/*/*/checkpoints/step-*`."""
        ...

    def files(self, key: str) -> Sequence[Entry]:
        """The file of that key, or all files in the folder; none if there is neither."""
        ...

    def remove(self, key: str) -> None:
        """Remove a file, or a folder with its contents, as far as that is possible; there may be neither."""
        ...

    def holds(self, path: Path) -> bool:
        """Whether a path of this machine is inside the storage."""
        ...

    def free_bytes(self) -> int:
        """The space that is left on this machine for what is stored, in bytes."""
        ...


def object_key(sha256: str) -> str:
    """Return the key under which content with that SHA-256 is stored, once for all files that have it."""
    return f"objects/{sha256[:2]}/{sha256}"


def require_inside(key: str) -> None:
    """Check that a key names something inside a storage.

    Raises:
        ValueError: it points outside.
    """
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"not a storage key: {key!r}")
