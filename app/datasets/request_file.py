"""Reads a dataset that an API request names; what is wrong with it becomes an error of the API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from app.core.errors import InvalidRequestError
from app.datasets.formats import parse_line
from app.datasets.lines import UnreadableFileError, read_lines
from app.datasets.types import Example, ExampleError


def read_request_file(path: Path, *, param: str = "file") -> Iterator[tuple[int, bytes]]:
    """Yields the file's lines with their numbers from 1, without the empty ones.

    Raises:
        InvalidRequestError: the file is not JSONL, is damaged, or has a line that is too long.
    """
    try:
        yield from read_lines(path)
    except UnreadableFileError as error:
        where = "" if error.message.startswith("The ") else f"Line {error.line} "
        raise InvalidRequestError(f"{where}{error.message}.", code=error.code, param=param) from None


def parse_request_line(number: int, line: bytes, *, param: str = "file") -> Example:
    """Returns the example on a line.

    Raises:
        InvalidRequestError: the line has an error; the message says on which line, where and why.
    """
    try:
        return parse_line(line)
    except ExampleError as error:
        raise line_error(number, error, param=param) from None


def line_error(number: int, error: ExampleError, *, param: str) -> InvalidRequestError:
    """Returns the API's error for a line that has an error."""
    place = f" (at {error.pointer})" if error.pointer else ""
    return InvalidRequestError(f"Line {number} {error.message}{place}.", code=error.code, param=param)
