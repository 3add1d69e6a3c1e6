"""A storage in a bucket of S3, of one of the many servers that speak its protocol, of Google or of Azure.

A folder is there once its manifest is, which is put last. Keys are unique or made of the content, so nothing
depends on conditional writes, in which servers differ.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from io import BufferedReader, RawIOBase
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, cast

import obstore
from typing_extensions import override

from app.storage.base import (
    DamagedContentError,
    Entry,
    require_inside,
)
from app.storage.bucket import Bucket, reaching, sign_url
from app.storage.cache import Cache
from app.storage.incoming import IncomingFile, IncomingFolder, StoredFile
from app.storage.incoming_object import ATTRIBUTES, LARGEST_COPY, IncomingObject
from app.storage.manifest import MANIFEST, read_sums

if TYPE_CHECKING:
    from obstore import ObjectMeta

_BLOCK_BYTES = 2**20
_FILE_PART_BYTES = 16 * 2**20
"""There are 10,000 parts at most, so that a file has 160 GiB at most."""
_PARTS_AT_ONCE = 4


class ObjectStorage:
    """Keeps a file as an object, and a folder as several; reads them through a cache on this machine."""

    is_cached = True

    def __init__(self, bucket: Bucket, cache: Cache, largest_copy: int = LARGEST_COPY) -> None:
        """`largest_copy` is how many bytes the server copies in one request."""
        self._bucket = bucket
        self._largest_copy = largest_copy
        self._cache = cache
        self._verified: dict[str, int] = {}
        """The inode of each folder's copy that this process has verified."""

    def open(self, key: str) -> BufferedReader:
        """Open a file to read it from its beginning to its end."""
        require_inside(key)
        return BufferedReader(_Content(self._chunks(key)))

    @contextmanager
    def local(self, key: str) -> Generator[Path]:
        """Yield a copy, which was verified against its manifest or the hash that it is named after."""
        require_inside(key)
        with self._cache.copy(key, lambda path: self._fetch(key, path)) as path:
            is_intact = self._is_intact(key, path)
            if is_intact:
                yield path
                return
        self._cache.discard(key)  # damaged on this machine
        with self._cache.copy(key, lambda path: self._fetch(key, path)) as path:
            yield path

    @contextmanager
    def workspace(self, key: str) -> Generator[Path]:  # noqa: ARG002 - it is the same for every key
        """Yield an empty folder."""
        with self._cache.workspace() as folder:
            yield folder

    @contextmanager
    def incoming(self) -> Generator[IncomingFile]:
        """Open a new object to write; it is discarded unless it is published before the block ends."""
        incoming = IncomingObject(self._bucket)
        try:
            yield incoming
        finally:
            incoming.discard()

    @contextmanager
    def incoming_folder(self) -> Generator[IncomingFolder]:
        """Open a new folder on this machine to fill; it is discarded when the block ends."""
        incoming = IncomingFolder(self._cache.temporary())
        try:
            yield incoming
        finally:
            incoming.discard()

    def publish(self, incoming: IncomingFile, key: str) -> StoredFile:
        """Have the server copy an incoming object to its key, unless the key's content is there already."""
        assert isinstance(incoming, IncomingObject)
        require_inside(key)
        incoming.finish()
        is_there = key.endswith(incoming.sha256) and self.exists(key)
        if not is_there:
            incoming.copy_to(key, self._largest_copy)
        return StoredFile(key, incoming.bytes, incoming.sha256)

    def publish_file(self, path: Path, key: str) -> None:
        """Upload a file in parts; it is there once all of it is."""
        require_inside(key)
        with reaching():
            obstore.put(
                self._bucket,
                key,
                path,
                attributes=ATTRIBUTES,
                chunk_size=_FILE_PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def publish_folder(self, folder: Path, key: str) -> None:
        """Upload a folder, its manifest last."""
        names = sorted(each.name for each in folder.iterdir() if each.name != MANIFEST)
        for name in (*names, MANIFEST):
            self.publish_file(folder / name, f"{key}/{name}")

    def write(self, key: str, content: bytes) -> StoredFile:
        """Store a small file at once."""
        require_inside(key)
        with reaching():
            obstore.put(self._bucket, key, content, attributes=ATTRIBUTES)
        return StoredFile(key, len(content), hashlib.sha256(content).hexdigest())

    def signed_url(self, key: str, method: Literal["GET", "PUT"], seconds: int) -> str | None:
        """Return a URL of the bucket, signed for a file and a method; None if the credentials cannot sign."""
        require_inside(key)
        return sign_url(self._bucket, key, method, seconds)

    def exists(self, key: str) -> bool:
        """Whether there is such a file, or a folder with a manifest."""
        require_inside(key)
        for name in (key, f"{key}/{MANIFEST}"):
            with suppress(FileNotFoundError), reaching():
                obstore.head(self._bucket, name)
                return True
        return False

    def size(self, key: str) -> int:
        """The bytes of a file, or of all files in a folder; 0 if there is neither."""
        return sum(entry.bytes or 0 for entry in self.files(key))

    def list(self, pattern: str) -> Iterator[Entry]:
        """Yield the files and folders whose keys match; a folder is as old as its newest file."""
        require_inside(pattern)
        segments = PurePosixPath(pattern).parts
        prefix = "/".join(takewhile(lambda segment: "*" not in segment, segments[:-1]))
        found: dict[str, Entry] = {}
        for entry in self._below(prefix):
            parts = PurePosixPath(entry.key).parts
            if len(parts) < len(segments) or not all(map(fnmatchcase, parts, segments)):
                continue
            key = "/".join(parts[: len(segments)])
            is_file = len(parts) == len(segments)
            newest = max(entry.modified_ns, found[key].modified_ns if key in found else 0)
            found[key] = Entry(key, newest, entry.bytes if is_file else None)
        yield from found.values()

    def files(self, key: str) -> Sequence[Entry]:
        """The file of that key, or all files in the folder; none if there is neither."""
        require_inside(key)
        if found := list(self._below(key)):
            return sorted(found, key=lambda entry: entry.key)
        with suppress(FileNotFoundError), reaching():
            return [_entry(obstore.head(self._bucket, key))]
        return []

    def remove(self, key: str) -> None:
        """Remove a file, or a folder with its contents; there may be neither. A manifest goes first."""
        require_inside(key)
        keys = [entry.key for entry in self._below(key)]
        first = [each for each in keys if each.endswith(f"/{MANIFEST}")]
        for some in (first, [each for each in keys if each not in first], [key]):
            with suppress(FileNotFoundError), reaching():
                if some:
                    obstore.delete(self._bucket, some)
        self._cache.discard(key)

    def holds(self, path: Path) -> bool:
        """Whether a path of this machine is inside the cache."""
        return self._cache.holds(path)

    def free_bytes(self) -> int:
        """The space that is left for the cache, in bytes."""
        return self._cache.free_bytes()

    def _chunks(self, key: str) -> Iterator[bytes]:
        with reaching():
            yield from obstore.get(self._bucket, key).stream(_BLOCK_BYTES)

    def _below(self, prefix: str) -> Iterator[Entry]:
        with reaching():
            # obstore's types of lists depend on Arrow, which is not installed.
            for some in cast(Any, obstore).list(self._bucket, prefix or None, chunk_size=1000):
                yield from map(_entry, some)

    def _fetch(self, key: str, path: Path) -> int:
        """Copy a file or a folder to a path, and return its bytes; it is damaged if it is so twice."""
        try:
            return self._fetch_once(key, path)
        except DamagedContentError:
            return self._fetch_once(key, path)

    def _fetch_once(self, key: str, path: Path) -> int:
        try:
            content = b"".join(self._chunks(f"{key}/{MANIFEST}"))
        except FileNotFoundError:
            expected = key.rpartition("/")[2] if key.startswith("objects/") else None
            return self._fetch_file(key, path, expected, durably=True)
        path.mkdir(exist_ok=True)
        sums = _read_sums(content, key)
        sizes = [self._fetch_file(f"{key}/{name}", path / name, sums[name], durably=False) for name in sums]
        (path / MANIFEST).write_bytes(content)
        self._verified[key] = path.stat().st_ino
        return sum(sizes) + len(content)

    def _fetch_file(self, key: str, path: Path, expected: str | None, *, durably: bool) -> int:
        """Write a file. One alone is not verified again, so that it must survive a power cut."""
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in self._chunks(key):
                file.write(chunk)
                digest.update(chunk)
            size = file.tell()
            if durably:
                file.flush()
                os.fsync(file.fileno())
        if expected not in (None, digest.hexdigest()):
            raise DamagedContentError(f"{key} does not match its checksum")
        return size

    def _is_intact(self, key: str, path: Path) -> bool:
        """Whether the copy of a folder, read once by each process, is what its manifest says."""
        inode = path.stat().st_ino
        if not path.is_dir() or self._verified.get(key) == inode:
            return True
        try:
            for name, expected in _read_sums((path / MANIFEST).read_bytes(), key).items():
                with (path / name).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                        return False
        except OSError:
            return False
        self._verified[key] = inode
        return True


class _Content(RawIOBase):
    """The content of an object, as a file that is read once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._left = memoryview(next(chunks, b""))  # raises here if there is no such object

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        some = self._left[: len(buffer)]
        buffer[: len(some)] = some
        self._left = self._left[len(some) :]
        return len(some)


def _read_sums(manifest: bytes, key: str) -> dict[str, str]:
    try:
        return read_sums(manifest)
    except ValueError as error:
        raise DamagedContentError(f"{key}/{MANIFEST} cannot be read") from error


def _entry(found: ObjectMeta) -> Entry:
    return Entry(found["path"], int(found["last_modified"].timestamp() * 1e9), found["size"])
