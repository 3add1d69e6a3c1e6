"""The hold-out: a part of a training file that its job is evaluated on and does not train on.

Which examples are held out depends only on the file, the share and the seed, not on a random generator:

1. Examples that are equal once normalised (`fingerprint.normalised`) are one group, which stays together.
2. Groups stand in a row: first those whose answer another group gives too, by answer; then the others, by
   the length of their first line. Within, by BLAKE2b-128 of the seed and the group's fingerprint.
3. Of n groups, m = floor(share x n + 1/2) are held out: those at floor((i + u) x n / m) for i from 0, u
   being the seed's own BLAKE2b-64 as a fraction. So every answer and every length has its share, give or
   take one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.core.errors import InvalidRequestError
from app.datasets import fingerprint
from app.datasets.request_file import parse_request_line, read_request_file
from app.files import service as files_service
from app.files.models import File
from app.fine_tuning.schemas import SplitRequest
from app.storage.base import Storage
from app.storage.incoming import IncomingFile


@dataclass(frozen=True, slots=True)
class Choice:
    """The examples that are held out, and how many are left."""

    request: SplitRequest
    held_out: frozenset[int]
    """The lines of the held-out examples, counted from 1."""
    examples: int
    """The number of examples that are left to train on."""


@dataclass(slots=True)
class Part:
    """One of the two files that a split makes."""

    incoming: IncomingFile
    examples: int = 0

    def add(self, line: bytes) -> None:
        """Add the next example."""
        self.incoming.write(line + b"\n")
        self.examples += 1


@dataclass(frozen=True, slots=True)
class IncomingSplit:
    """Both files of a split, written but not published."""

    choice: Choice
    rest: Part
    held_out: Part


def choose(path: Path, request: SplitRequest, min_examples: int) -> Choice:
    """Choose the examples to hold out.

    Raises:
        InvalidRequestError: none would be held out, or fewer than `min_examples` left.
    """
    lines: dict[bytes, list[int]] = {}
    answers: dict[bytes, bytes] = {}
    lengths: dict[bytes, int] = {}
    examples = 0
    for number, line in read_request_file(path, param="training_file"):
        example = parse_request_line(number, line, param="training_file")
        group = fingerprint.normalised(example)
        if group not in lines:
            lines[group], answers[group], lengths[group] = [], fingerprint.answer(example), len(line)
        lines[group].append(number)
        examples += 1

    given = Counter(answers.values())

    def place(group: bytes) -> tuple[bool, bytes, int, bytes]:
        repeats = given[answers[group]] > 1
        shuffled = hashlib.blake2b(b"%d:" % request.seed + group, digest_size=16).digest()
        return not repeats, answers[group] if repeats else b"", 0 if repeats else lengths[group], shuffled

    row = sorted(lines, key=place)
    wanted = int(request.share * len(row) + 0.5)
    held_out = frozenset(
        number for place in _evenly(len(row), wanted, request.seed) for number in lines[row[place]]
    )
    left = examples - len(held_out)
    if not held_out or left < min_examples:
        raise InvalidRequestError(
            f"The training file is too small for a hold-out of {request.share:g}: of its {examples} "
            f"examples ({len(row)} different ones) {len(held_out)} would be held out and {left} left, where "
            f"a job needs at least {min_examples}. Add examples, or change 'validation_split.share'.",
            code="too_few_examples",
            param="validation_file",
        )
    return Choice(request, held_out, left)


@contextmanager
def write_split(storage: Storage, file: File, choice: Choice) -> Generator[IncomingSplit]:
    """Write both files; they are removed when the block ends, unless they were published."""
    with storage.incoming() as rest, storage.incoming() as held_out:
        split = IncomingSplit(choice, Part(rest), Part(held_out))
        with files_service.content(storage, file) as path:
            for number, line in read_request_file(path):
                (split.held_out if number in choice.held_out else split.rest).add(line)
        rest.finish()
        held_out.finish()
        yield split


def filenames(name: str) -> tuple[str, str]:
    """Return the names of the rest and the hold-out of a file of that name."""
    stem, dot, ending = name.rpartition(".")
    if not stem:
        stem, dot, ending = name, ".", "jsonl"
    return f"{stem}.rest{dot}{ending}", f"{stem}.held-out{dot}{ending}"


def _evenly(count: int, wanted: int, seed: int) -> list[int]:
    """Return `wanted` positions from 0 to `count - 1`, evenly spread; the seed shifts them."""
    begin = int.from_bytes(hashlib.blake2b(b"%d" % seed, digest_size=8).digest()) / 2**64
    return [min(count - 1, int((i + begin) * count / wanted)) for i in range(wanted)]
