"""Is a training file one that can be trained on? Read once, line by line, whatever its size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.errors import InvalidRequestError
from app.files.examples import Example, ExampleError, parse_line

MAX_LINE_BYTES = 8 * 2**20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class TrainingFileSummary:
    """What a valid training file holds."""

    examples: int
    longest_line: int
    """Bytes."""


def check_training_file(path: Path) -> TrainingFileSummary:
    """Checks every line of a training file.

    Raises:
        InvalidRequestError: names the first line that is wrong, and what is wrong with it.
    """
    examples = longest = 0
    for number, line in read_lines(path):
        parse_numbered_line(number, line)
        examples += 1
        longest = max(longest, len(line))
    if not examples:
        raise InvalidRequestError(
            "The file is empty: it has no training examples.", code="empty_file", param="file"
        )
    return TrainingFileSummary(examples, longest)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The file's lines with their numbers from 1, empty ones left out. JSONL splits on `\\n` alone.

    Raises:
        InvalidRequestError: a line is too long to be an example.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 2):
            number += 1
            if len(line) > MAX_LINE_BYTES + 1:
                raise _line_error(number, "line_too_long", f"is longer than {MAX_LINE_BYTES:,} bytes")
            if number == 1:
                line = line.removeprefix(_BOM)
            line = line.strip(b" \t\r\n")
            if line:
                yield number, line


def parse_numbered_line(number: int, line: bytes, *, param: str = "file") -> Example:
    """The example on that line.

    Raises:
        InvalidRequestError: the line is wrong; the message says which, where and why.
    """
    try:
        return parse_line(line)
    except ExampleError as error:
        raise line_error(number, error, param=param) from None


def line_error(number: int, error: ExampleError, *, param: str) -> InvalidRequestError:
    """An example's error as the API reports it."""
    return _line_error(number, error.code, error.message, pointer=error.pointer, param=param)


def _line_error(
    number: int, code: str, problem: str, *, pointer: str = "", param: str = "file"
) -> InvalidRequestError:
    place = f" (at {pointer})" if pointer else ""
    return InvalidRequestError(f"Line {number} {problem}{place}.", code=code, param=param)
