"""Reads the lines of a dataset: plain, gzip or Zstandard, recognised by content and never by name.

Files are streamed in constant memory, and lines end at `\\n` alone. A file that is not JSONL (an archive, a
table, another encoding) is refused by its first bytes, and a decompression bomb while it is decompressed.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from gzip import GzipFile
from pathlib import Path
from typing import BinaryIO

import zstandard
from typing_extensions import override

MAX_LINE_BYTES = 8 * 2**20
TOO_LONG = f"is longer than {MAX_LINE_BYTES:,} bytes"
MAX_DECOMPRESSED_BYTES = 16 * 2**30
MAX_RATIO = 200
"""Decompressed bytes per compressed byte: text reaches 20 at most, a decompression bomb 1,000 and more."""
_MIN_BYTES_FOR_RATIO = 16 * 2**20
"""The ratio is not checked below this size: a small file that repeats one line is harmless."""
_CHUNK = 2**18
_ZSTD_CHUNK = 2**10
_BOM = b"\xef\xbb\xbf"
_WHITE = b" \t\r\n"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


_ZIP, _TAR = ("zip_archive", "a zip archive"), ("tar_archive", "a tar archive")
_PACKED = ("unsupported_compression", "packed in a way that is not read here")
_PICKLE, _PARQUET = ("pickle", "a Python pickle"), ("parquet", "a Parquet file")
_UTF16 = ("utf16", "text in UTF-16 or UTF-32")
_ARRAY, _CSV = ("json_array", "one JSON array"), ("csv", "a CSV table")
_MAGIC: tuple[tuple[bytes, tuple[str, str]], ...] = (
    (b"PK\x03\x04", _ZIP),
    (b"PK\x05\x06", _ZIP),
    (b"PAR1", _PARQUET),
    (b"BZh", _PACKED),
    (b"\xfd7zXZ\x00", _PACKED),
    (b"7z\xbc\xaf\x27\x1c", _PACKED),
    (b"Rar!\x1a\x07", _PACKED),
    (b"\xff\xfe", _UTF16),
    (b"\xfe\xff", _UTF16),
    *((b"\x80" + bytes([protocol]), _PICKLE) for protocol in range(2, 6)),
)


class UnreadableFileError(ValueError):
    """The file as a whole cannot be read as JSONL; `line` is the line on which this was noticed."""

    def __init__(self, code: str, message: str, line: int = 1) -> None:
        super().__init__(code, message, line)  # all of them, as it may be raised in another process
        self.code = code
        self.message = message
        self.line = line

    @override
    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its line end. The content of a line over `MAX_LINE_BYTES` is truncated."""

    number: int
    content: bytes
    ends_in_crlf: bool = False
    is_too_long: bool = False
    is_unfinished: bool = False
    """Whether the file ends here without a newline."""
    has_bom: bool = False
    count: int = 1
    """The number of consecutive empty lines that this object stands for, itself included."""


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the file's lines with their numbers from 1, stripped and without the empty ones.

    Raises:
        UnreadableFileError: the file is not JSONL, is damaged, or has a line that is too long.
    """
    with open_lines(path) as file:
        for line in split_lines(file):
            if line.is_too_long:
                raise UnreadableFileError("line_too_long", TOO_LONG, line.number)
            if content := line.content.strip(_WHITE):
                yield line.number, content


@contextmanager
def open_lines(path: Path) -> Generator[io.BufferedReader]:
    """Opens the file as a stream of bytes, decompressed where it is compressed.

    Raises:
        UnreadableFileError: the file is not JSONL. Reading it raises the same error if it is damaged, or a
            decompression bomb.
    """
    with path.open("rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        if magic.startswith(_GZIP) or magic == _ZSTD:
            chunks = _decompress_gzip(raw) if magic != _ZSTD else _decompress_zstd(raw)
            file: io.BufferedReader = io.BufferedReader(_DecompressedFile(chunks, raw), _CHUNK)
        else:
            file = raw
        _refuse_other_file_types(file.peek(2**12)[: 2**12])
        yield file


def unpacks_beyond(path: Path, size: int) -> bool:
    """Returns whether the file has more than `size` bytes once it is unpacked; reads no more than it must."""
    if not is_compressed(path):
        return path.stat().st_size > size
    unpacked = 0
    try:
        with open_lines(path) as file:
            while unpacked <= size and (chunk := file.read(_CHUNK)):
                unpacked += len(chunk)
    except UnreadableFileError:
        return False  # a scan ends there, too, and says what is wrong
    return unpacked > size


def is_compressed(path: Path) -> bool:
    """Returns whether the file is compressed; such a file can only be read from the start."""
    with path.open("rb") as file:
        magic = file.read(4)
    return magic.startswith(_GZIP) or magic == _ZSTD


def split_lines(
    file: BinaryIO, *, start: int = 0, end: int | None = None, max_lines: int | None = None
) -> Iterator[Line]:
    """Yields the lines that begin in `[start, end)`, numbered from 1; the stream must be at `start`.

    Raises:
        UnreadableFileError: there are more than `max_lines`, the empty ones included.
    """
    position, number = start, 0
    if start:
        file.seek(start - 1)
        position = start - 1
        position += sum(map(len, _rest_of_line(file)))
    empty = 0  # consecutive empty lines become one object
    while (end is None or position < end) and (line := file.readline(MAX_LINE_BYTES + 2)):
        number += 1
        if max_lines is not None and number > max_lines:
            raise too_many_lines(max_lines)
        if line == b"\n":
            empty += 1
            position += 1
            continue
        if empty:
            yield Line(number - empty, b"", count=empty)
            empty = 0
        position += len(line)
        too_long = len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES
        if too_long and not line.endswith(b"\n"):
            for rest in _rest_of_line(file):
                position += len(rest)
                line = line[:1024] + rest[-1:]
        has_bom = number == 1 and not start and line.startswith(_BOM)
        yield Line(
            number,
            line[3 if has_bom else 0 :].rstrip(b"\r\n"),
            ends_in_crlf=line.endswith(b"\r\n"),
            is_too_long=too_long,
            is_unfinished=not line.endswith(b"\n"),
            has_bom=has_bom,
        )
    if empty:
        yield Line(number - empty + 1, b"", count=empty)


def too_many_lines(max_lines: int) -> UnreadableFileError:
    """Returns the error of a file that has more lines than are read."""
    message = f"The file has more than {max_lines:,} lines (TOQUE_MAX_FILE_LINES)"
    return UnreadableFileError("too_many_lines", message, max_lines + 1)


def _rest_of_line(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.readline(_CHUNK):
        yield chunk
        if chunk.endswith(b"\n"):
            return


def _refuse_other_file_types(head: bytes) -> None:
    kind = next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)
    if kind is None and head[257:262] == b"ustar":
        kind = _TAR
    text = head.removeprefix(_BOM).lstrip(_WHITE)
    if kind is None and b"\x00" in head[:64] and (head[1:2] == b"\x00" or head[:1] == b"\x00"):
        kind = _UTF16
    if kind is None and text.startswith(b"["):
        # An array of anything but objects is left to the checks of its line.
        kind = _ARRAY if text[1:].lstrip(_WHITE)[:1] in (b"{", b"") else None
    if kind is None and _is_table(text):
        kind = _CSV
    if kind is not None:
        code, name = kind
        raise UnreadableFileError(code, f"The file is {name}, not JSONL")


def _is_table(text: bytes) -> bool:
    """Returns whether the text begins with a header row: no brace, and two or more separated cells."""
    first, newline, _ = text.partition(b"\n")
    if not newline or b"{" in first or b"[" in first:
        return False
    return any(
        len(cells := first.strip().split(sign)) > 1
        and all(cell.strip(b' "').replace(b"_", b"").replace(b" ", b"").isalnum() for cell in cells)
        for sign in (b",", b";", b"\t")
    )


class _DecompressedFile(io.RawIOBase):
    """A decompressor's output as a file, with a limit on its size."""

    def __init__(self, chunks: Iterator[bytes], packed: BinaryIO) -> None:
        self._chunks = chunks
        self._packed = packed
        self._pending = b""
        self._bytes = 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fills the buffer as far as the next bytes go; returns their number.

        Raises:
            UnreadableFileError: the compressed data is damaged or a decompression bomb.
        """
        while not self._pending and (chunk := next(self._chunks, None)) is not None:
            self._pending = chunk
            self._bytes += len(chunk)
            self._refuse_bomb()
        given = self._pending[: len(buffer)]
        buffer[: len(given)] = given
        self._pending = self._pending[len(given) :]
        return len(given)

    def _refuse_bomb(self) -> None:
        packed = self._packed.tell()
        if self._bytes > min(max(_MIN_BYTES_FOR_RATIO, packed * MAX_RATIO), MAX_DECOMPRESSED_BYTES):
            raise UnreadableFileError(
                "decompression_bomb",
                f"The file unpacks into {self._bytes // 2**20:,} MiB from {packed:,} bytes; at most "
                f"{MAX_RATIO} times its size and {MAX_DECOMPRESSED_BYTES // 2**30} GiB are unpacked",
            )


def _decompress_gzip(raw: BinaryIO) -> Iterator[bytes]:
    reader = GzipFile(fileobj=raw, mode="rb")
    try:
        while chunk := reader.read(_CHUNK):
            yield chunk
    except EOFError:
        raise _truncated("gzip") from None
    except (OSError, zlib.error) as error:
        raise _damaged(error) from None


def _decompress_zstd(raw: BinaryIO) -> Iterator[bytes]:
    """Decompresses in small chunks, since each may grow to 32 thousand times its size."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**27)
    frame = decompressor.decompressobj()
    try:
        while compressed := raw.read(_ZSTD_CHUNK):
            while compressed:
                if frame.eof:
                    frame = decompressor.decompressobj()
                if chunk := frame.decompress(compressed):
                    yield chunk
                compressed = frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        raise _damaged(error) from None
    if not frame.eof:
        raise _truncated("Zstandard")


def _truncated(kind: str) -> UnreadableFileError:
    message = f"The {kind} data ends before its end: the file is truncated"
    return UnreadableFileError("truncated_file", message)


def _damaged(error: Exception) -> UnreadableFileError:
    message = f"The compressed data is damaged: {error}"
    return UnreadableFileError("damaged_file", message)
