"""An adapter as a tar, made while it is sent: never whole in memory, nor on disk."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from app.models.adapters.validation import CONFIG, WEIGHTS

_CHUNK = 2**18


class AdapterArchive:
    """A tar with PEFT's two files: a config of our own, and the weights as they are stored."""

    def __init__(
        self, config: bytes, folder: Callable[[], AbstractContextManager[Path]], created_at: float
    ) -> None:
        """`folder` has the adapter's folder on this machine while it is entered."""
        self._config = config
        self._folder = folder
        with folder() as path:
            self._weights_size = (path / WEIGHTS).stat().st_size
        self._created_at = int(created_at)

    @property
    def size(self) -> int:
        """Bytes in all."""
        sizes = (len(self._config), self._weights_size)
        return sum(tarfile.BLOCKSIZE + size + _padding(size) for size in sizes) + 2 * tarfile.BLOCKSIZE

    def __iter__(self) -> Iterator[bytes]:
        yield self._header(CONFIG, len(self._config)) + self._config + bytes(_padding(len(self._config)))
        yield self._header(WEIGHTS, self._weights_size)
        with self._folder() as path, (path / WEIGHTS).open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
        yield bytes(_padding(self._weights_size) + 2 * tarfile.BLOCKSIZE)

    def _header(self, name: str, size: int) -> bytes:
        member = tarfile.TarInfo(name)
        member.size, member.mtime = size, self._created_at
        return member.tobuf(tarfile.GNU_FORMAT)  # for weights of any size


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
