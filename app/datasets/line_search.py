"""Searches the examples of a dataset for words, for a bounded time: whoever asks goes on where it stopped.

A line has the words if one of its texts contains them, whatever their case. Its texts are the strings in its
JSON, without the names of fields and those of roles and types; a line that is not JSON is one text.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from app.datasets.line_pages import PAGE_BYTES, Piece, Place, open_at

_ESCAPED = re.compile('["\\\\\x00-\x1f]+')
"""Characters that JSON writes as an escape, always."""
_NOT_TEXTS = frozenset({"role", "type", "from"})
"""Fields whose values are names."""
_decoder = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The lines that were found, and how far the search has come."""

    lines: list[Piece]
    next: Place | None
    """Where the search goes on; None once everything is searched."""
    offset: int
    """How many bytes have been searched, of what is unpacked."""
    is_cut: bool
    """Whether the file goes on, although no more of it is read."""


def search_lines(path: str, words: str, at: Place, limit: int, seconds: float) -> SearchResult:
    """Searches from a place on, until `limit` lines are found or the time is over.

    Raises:
        UnreadableFileError: the file is not JSONL, or damaged.
    """
    deadline = time.monotonic() + seconds
    wanted = Words(words)
    lines: list[Piece] = []
    size = 0
    with open_at(Path(path), at) as reader:
        for piece in reader.pieces():
            if piece.content and wanted.are_in(piece.content):
                lines.append(piece)
                size += len(piece.content)
            if len(lines) == limit or size >= PAGE_BYTES or time.monotonic() > deadline:
                break
        offset, is_cut = reader.place.offset, reader.is_cut
        return SearchResult(lines, None if is_cut else reader.next, offset, is_cut)


class Words:
    """What is searched for. Most lines need not be decoded to see that they do not have it."""

    def __init__(self, words: str) -> None:
        self._words = words.casefold()
        # A part of the words that JSON writes as it is; `casefold` maps each character by itself.
        self._part = max(_ESCAPED.split(words), key=len).casefold()
        self._ascii = self._part.encode() if self._part.isascii() else None

    def are_in(self, line: bytes) -> bool:
        """Returns whether one of the line's texts has the words."""
        return self._may_be_in(line) and any(self._words in text.casefold() for text in texts_of(line))

    def _may_be_in(self, line: bytes) -> bool:
        if b"\\u" in line or b"\\/" in line:
            return True  # the words may be there as escapes
        if line.isascii():
            return self._ascii is not None and self._ascii in line.lower()
        return self._part in line.decode("utf-8", "replace").casefold()


def texts_of(line: bytes) -> Iterator[str]:
    """Yields the texts of a line."""
    try:
        tree: Any = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        yield line.decode("utf-8", "replace")
        return
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            waiting.extend(cast("list[Any]", value))
        elif isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            waiting.extend(item for name, item in fields.items() if name not in _NOT_TEXTS)


def places_of(text: str, words: str) -> list[tuple[int, int]]:
    """Returns where a text has the words, from first to last, as a search finds them: whatever their case.

    `casefold` may make several characters of one, such as "ss" of "ß": who finds a part has found all of it.
    """
    wanted, folded = words.casefold(), text.casefold()
    origins = range(len(text))
    if len(folded) > len(text):
        origins = [place for place, character in enumerate(text) for _ in character.casefold()]
    places: list[tuple[int, int]] = []
    begin = folded.find(wanted) if wanted else -1
    while begin >= 0:
        stop = begin + len(wanted)
        first, last = origins[begin], origins[stop - 1] + 1
        if places and first < places[-1][1]:
            first = places.pop()[0]
        places.append((first, last))
        begin = folded.find(wanted, stop)
    return places
