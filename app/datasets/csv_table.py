"""Converts a CSV table with named columns to chat examples."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from app.datasets.lines import MAX_LINE_BYTES

_SAMPLE_CHARACTERS = 65_536


class CsvError(ValueError):
    """The table cannot be converted; the message says where and why."""


def convert_csv(table: Path, *, prompt: str, completion: str, system: str | None) -> Iterator[bytes]:
    """Yields a line of JSONL for each row: the columns' texts as system, user and assistant messages.

    The separator (comma, semicolon or tab) is guessed from the first line. Empty rows are skipped.

    Raises:
        CsvError: the table is not UTF-8, lacks a column, or has a row without a text.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        with table.open(encoding="utf-8-sig", newline="") as text:
            sample = text.readline(_SAMPLE_CHARACTERS)
            text.seek(0)
            reader = csv.DictReader(text, delimiter=max(",;\t", key=sample.count), strict=True)
            columns = [("system", system), ("user", prompt), ("assistant", completion)]
            named = [(role, column) for role, column in columns if column is not None]
            for _, column in named:
                if column not in (reader.fieldnames or ()):
                    known = ", ".join(map(repr, reader.fieldnames or ())) or "none"
                    raise CsvError(f"the table has no column {column!r}; it has {known}")
            for row in reader:
                if any(row.values()):
                    yield msgspec.json.encode({"messages": _messages(row, named, reader.line_num)})
    except UnicodeDecodeError as error:
        raise CsvError(f"the table is not UTF-8 (byte {error.start + 1} of a block)") from None
    except csv.Error as error:
        raise CsvError(f"the table is damaged: {error}") from None


def _messages(row: Mapping[str, str], named: Sequence[tuple[str, str]], line: int) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    for role, column in named:
        content = row[column]
        if content and content.strip():
            messages.append({"role": role, "content": content})
        elif role != "system":
            raise CsvError(f"the row that ends on line {line} has an empty {column!r}")
    return messages
