"""Reads a few lines of a dataset at any place, in time and memory that do not grow with the file.

A place is a byte offset with the number of the line there, so that pages need no index. A place amid a line
stands for the rest of that line, which is passed over: so reading may stop even in a line that is longer than
there is time for. A compressed file can be read from its beginning only, and so only its first part is read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from os import SEEK_END
from pathlib import Path
from typing import BinaryIO, NamedTuple

from app.datasets.lines import MAX_LINE_BYTES, is_compressed, open_lines

PAGE_BYTES = 2 * 2**20
"""A page ends with the line in which it becomes longer than this."""
MAX_UNPACKED_BYTES = 64 * 2**20
"""How much of a compressed file is read, unpacked."""
_CHUNK = 2**20
_BOM = b"\xef\xbb\xbf"
_WHITE = b" \t\r\n"


class Place(NamedTuple):
    """A place in a file: a byte offset (in what is unpacked), and the number of the line there, from 1."""

    offset: int = 0
    line: int = 1


START = Place()


@dataclass(frozen=True, slots=True)
class Piece:
    """A line, a part of one that is longer than a line may be, or some empty lines that follow each other."""

    at: Place
    after: Place
    """Where reading goes on."""
    content: bytes
    """The line without white space at its ends; empty if it is too long."""
    is_too_long: bool = False
    """Whether a line that is too long begins here."""

    @property
    def is_shown(self) -> bool:
        """Returns whether it is, or begins, a line that is not empty."""
        return bool(self.content) or self.is_too_long


@dataclass(frozen=True, slots=True)
class Page:
    """Some lines that follow each other, without the empty ones."""

    lines: list[Piece]
    next: Place | None
    """Where the next page begins; None at the end of what is read."""
    is_cut: bool = False
    """Whether the file goes on, although no more of it is read."""


class Reader:
    """A file that is read line by line from a place on."""

    def __init__(self, file: BufferedReader, at: Place, end: int | None) -> None:
        """`file` is at the byte before the place; nothing is read from `end` on."""
        self._file = file
        self._end = end
        self.place = at
        """Where the next line begins, or where a line that is too long goes on."""

    def pieces(self) -> Iterator[Piece]:
        """Yields every line; empty ones, of which there may be millions, several at once."""
        is_inside = self.place.offset > 0 and self._file.read(1) != b"\n"
        while self._end is None or self.place.offset < self._end:
            text = self._file.readline(_CHUNK if is_inside else MAX_LINE_BYTES + 2)
            if not text:
                return
            at, is_rest = self.place, is_inside
            is_too_long = not is_rest and len(text.rstrip(b"\r\n")) > MAX_LINE_BYTES
            is_inside = (is_rest or is_too_long) and not text.endswith(b"\n")
            self.place = Place(at.offset + len(text), at.line + (not is_inside))
            if not is_inside and not text.strip(_WHITE):
                self._pass_empty_lines()
            content = b"" if is_rest or is_too_long else text.strip(_WHITE)
            yield Piece(at, self.place, content.removeprefix(b"" if at.offset else _BOM), is_too_long)

    def _pass_empty_lines(self) -> None:
        """Goes on to behind the empty lines that are in memory already."""
        offset, line = self.place
        ahead = self._file.peek(1)[: None if self._end is None else max(0, self._end - offset)]
        white = ahead[: len(ahead) - len(ahead.lstrip(_WHITE))]
        size = white.rfind(b"\n") + 1
        self._file.read(size)
        self.place = Place(offset + size, line + white.count(b"\n"))

    @property
    def is_cut(self) -> bool:
        """Returns whether the file goes on where reading had to end."""
        return self._end is not None and self.place.offset >= self._end and bool(self._file.read(1))

    @property
    def next(self) -> Place | None:
        """Returns where to go on; None at the end of what is read. Nothing can be read after this."""
        is_over = self._end is not None and self.place.offset >= self._end
        return self.place if not is_over and self._file.read(1) else None


@contextmanager
def open_at(path: Path, at: Place) -> Generator[Reader]:
    """Opens the file at a place.

    Raises:
        UnreadableFileError: the file is not JSONL. Reading it raises the same error if it is damaged.
    """
    packed = is_compressed(path)
    with open_lines(path) as file:
        _go_to(file, max(0, at.offset - 1), packed=packed)
        yield Reader(file, at, MAX_UNPACKED_BYTES if packed else None)


def read_page(path: Path, at: Place, *, limit: int, stop: int | None = None) -> Page:
    """Returns at most `limit` lines from a place on, and none that begins at `stop` or after it.

    Raises:
        UnreadableFileError: the file is not JSONL, or damaged.
    """
    lines: list[Piece] = []
    with open_at(path, at) as reader:
        for piece in reader.pieces():
            if piece.is_shown:
                lines.append(piece)
            offset = reader.place.offset
            is_full = len(lines) == limit or offset - at.offset >= PAGE_BYTES
            if is_full or (stop is not None and offset >= stop):
                break
        is_cut = reader.is_cut
        return Page(lines, None if is_cut else reader.next, is_cut)


def page_before(path: Path, at: Place, *, limit: int) -> Page:
    """Returns the lines, at most `limit`, that end where `at` begins.

    There are none if the line before is longer than a page.

    Raises:
        UnreadableFileError: the file is not JSONL, or damaged.
    """
    begin = max(0, at.offset - PAGE_BYTES)
    with open_lines(path) as file:
        if is_compressed(path):
            return Page([], at)
        _go_to(file, begin, packed=False)
        block = file.read(at.offset - begin)
    least = block.find(b"\n") + 1 if begin else 0  # the first line began earlier
    if begin and not least:
        return Page([], at)
    first, end = len(block), len(block.rstrip(_WHITE))
    for _ in range(limit):
        if end <= least:
            break
        first = block.rfind(b"\n", least, end) + 1 or least
        end = len(block[:first].rstrip(_WHITE))
    if first == len(block):
        return Page([], at)
    number = at.line - block.count(b"\n", first) - (not block.endswith(b"\n"))
    page = read_page(path, Place(begin + first, max(1, number)), limit=limit, stop=at.offset)
    return Page(page.lines, at)


def find_line(path: Path, number: int, *, start: Place = START, seconds: float = math.inf) -> Place | None:
    """Returns where the line begins; None if what is read of the file has fewer lines.

    The line ends between `start`, which is before the line, and the line are counted. If that takes longer
    than `seconds`, the place that is returned is on an earlier line, and counting can start from there.

    Raises:
        UnreadableFileError: the file is not JSONL, or damaged.
    """
    packed = is_compressed(path)
    end = MAX_UNPACKED_BYTES if packed else None
    offset, line = start
    with open_lines(path) as file:
        _go_to(file, offset, packed=packed)
        deadline = time.monotonic() + seconds
        while (end is None or offset < end) and (block := file.read(_CHUNK)):
            count = block.count(b"\n")
            if line + count < number:
                line, offset = line + count, offset + len(block)
                if time.monotonic() > deadline:
                    return Place(offset, line)
                continue
            begin = 0
            for _ in range(number - line):
                begin = block.index(b"\n", begin) + 1
            is_there = begin < len(block) or bool(file.read(1))
            place = Place(offset + begin, number)
            return place if is_there and (end is None or place.offset < end) else None
    return None


def _go_to(file: BinaryIO, offset: int, *, packed: bool) -> None:
    if not packed:
        file.seek(min(offset, file.seek(0, SEEK_END)))  # far beyond the end, file systems refuse to go
        return
    left = min(offset, MAX_UNPACKED_BYTES)
    while left and (passed := file.read(min(left, _CHUNK))):
        left -= len(passed)
