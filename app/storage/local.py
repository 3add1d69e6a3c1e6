"""A storage in a local folder, or one that several machines mount."""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Literal

from app.core.errors import StorageFullError
from app.storage.base import Entry, require_inside
from app.storage.incoming import (
    IncomingFile,
    IncomingFolder,
    LocalIncomingFile,
    StoredFile,
    rename_durably,
)

_BLOCK_BYTES = 4 * 2**20


class LocalStorage:
    """Keeps each key as a path under one folder, so that nothing is ever copied to be read."""

    is_cached = False

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def open(self, key: str) -> BufferedReader:
        """Open a file to read it from its beginning to its end."""
        return self._path(key).open("rb")

    @contextmanager
    def local(self, key: str) -> Generator[Path]:
        """Yield the path itself, which no link may lead out of the storage."""
        path = self._path(key)
        if not path.parent.resolve().is_relative_to(self._root.resolve()):
            raise ValueError(f"a link leads out of the storage: {key!r}")
        path.lstat()
        yield path

    @contextmanager
    def workspace(self, key: str) -> Generator[Path]:
        """Yield the key's own folder: what is built in it is published by being complete."""
        yield self._path(key)

    @contextmanager
    def incoming(self) -> Generator[IncomingFile]:
        """Open a new file to write; it is discarded unless it is published before the block ends."""
        with _raise_if_full():
            incoming = LocalIncomingFile(self._temporary())
            try:
                yield incoming
            finally:
                incoming.discard()

    @contextmanager
    def incoming_folder(self) -> Generator[IncomingFolder]:
        """Open a new folder to fill; it is discarded unless it is published before the block ends."""
        with _raise_if_full():
            incoming = IncomingFolder(self._temporary())
            try:
                yield incoming
            finally:
                incoming.discard()

    def publish(self, incoming: IncomingFile, key: str) -> StoredFile:
        """Publish an incoming file under a key; atomically replaces the file that has it already."""
        assert isinstance(incoming, LocalIncomingFile)
        incoming.finish()
        rename_durably(incoming.path, self._path(key))
        return StoredFile(key, incoming.bytes, incoming.sha256)

    def publish_file(self, path: Path, key: str) -> None:
        """Copy a file to its key."""
        with path.open("rb") as file, self.incoming() as incoming:
            while block := file.read(_BLOCK_BYTES):
                incoming.write(block)
            self.publish(incoming, key)

    def publish_folder(self, folder: Path, key: str) -> None:
        """Rename a folder to its key, unless it was built in its place."""
        if folder != self._path(key):
            rename_durably(folder, self._path(key))

    def write(self, key: str, content: bytes) -> StoredFile:
        """Store a small file at once."""
        with self.incoming() as incoming:
            incoming.write(content)
            return self.publish(incoming, key)

    def signed_url(self, key: str, method: Literal["GET", "PUT"], seconds: int) -> str | None:  # noqa: ARG002
        """None, as nobody else can reach the folder."""
        return None

    def exists(self, key: str) -> bool:
        """Whether there is such a file or folder."""
        return self._path(key).exists()

    def size(self, key: str) -> int:
        """The bytes of a file, or of all files in a folder; 0 if there is neither."""
        return sum(entry.bytes or 0 for entry in self.files(key))

    def list(self, pattern: str) -> Iterator[Entry]:
        """Yield the files and folders whose keys match, segment by segment."""
        require_inside(pattern)
        for path in self._root.glob(pattern):
            try:
                found = path.lstat()
            except FileNotFoundError:  # removed by another process
                continue
            yield Entry(self._key(path), found.st_mtime_ns, None if path.is_dir() else found.st_size)

    def files(self, key: str) -> Sequence[Entry]:
        """The file of that key, or all files in the folder; none if there is neither."""
        path = self._path(key)
        entries: list[Entry] = []
        for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
            try:
                found = each.stat()
            except FileNotFoundError:
                continue
            if each.is_file():
                entries.append(Entry(self._key(each), found.st_mtime_ns, found.st_size))
        return entries

    def remove(self, key: str) -> None:
        """Remove a file, or a folder with its contents, as far as that is possible; there may be neither."""
        path = self._path(key)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def holds(self, path: Path) -> bool:
        """Whether a path of this machine is inside the storage."""
        return path.resolve().is_relative_to(self._root.resolve())

    def free_bytes(self) -> int:
        """The space that is left on the folder's file system, in bytes."""
        self._root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self._root).free

    def _path(self, key: str) -> Path:
        require_inside(key)
        return self._root / key

    def _key(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

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
