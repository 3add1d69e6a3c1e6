"""Examples that are shown before a question: the same for all questions, or the nearest to each.

They are chosen in a child process, since that imports numpy and may read a large file.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from rapidfuzz import fuzz, process, utils

from app.comparisons.questions import Question
from app.datasets.formats import parse_line
from app.datasets.request_file import line_error, read_request_file
from app.datasets.types import ChatExample, ExampleError

MOST_SEARCHED = 10_000
"""The most examples that are searched for the nearest; of a larger file, that many are drawn at random."""
_QUERIES_AT_ONCE = 256


class Choice(msgspec.Struct, frozen=True):
    """The examples that are shown before each question."""

    examples: dict[int, list[dict[str, Any]]]
    """The turns of each example that is shown, without a system prompt, by its place in the file."""
    shown: list[list[int]]
    """For each question, the places of its examples in the order in which they are shown."""

    def turns(self, question: int) -> list[dict[str, Any]]:
        """Return the turns that come before that question."""
        return [turn for place in self.shown[question] for turn in self.examples[place]]


def count_examples(path: Path, *, param: str) -> int:
    """Return how many examples a file has.

    Raises:
        InvalidRequestError: a line is no chat example.
    """
    return sum(1 for _ in _read_examples(path, param))


def choose_examples(
    path: Path, questions: Sequence[Question], count: int, seed: int, selection: Literal["random", "nearest"]
) -> Choice:
    """Choose `count` examples of the file for each question; the same seed chooses the same ones.

    The nearest are those whose user turns are most similar (rapidfuzz's `token_sort_ratio`). The most similar
    comes last, right before the question.

    Raises:
        InvalidRequestError: a line is no chat example.
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    if selection == "random":
        places = draw.sample(range(count_examples(path, param="file")), count)
        return Choice(_examples_at(path, set(places)), [places] * len(questions))
    texts = [_asked(turns) for turns in _read_examples(path, "file")]
    searched = sorted(draw.sample(range(len(texts)), min(len(texts), MOST_SEARCHED)))
    nearest = _nearest([texts[place] for place in searched], [_asked(q.messages) for q in questions], count)
    shown = [[searched[place] for place in places] for places in nearest]
    return Choice(_examples_at(path, {place for places in shown for place in places}), shown)


def _nearest(texts: Sequence[str], questions: Sequence[str], count: int) -> list[list[int]]:
    """Return for each question the places of the texts most similar to it, the most similar last."""
    found: list[list[int]] = []
    for start in range(0, len(questions), _QUERIES_AT_ONCE):
        likeness = process.cdist(
            questions[start : start + _QUERIES_AT_ONCE],
            texts,
            scorer=fuzz.token_sort_ratio,
            processor=utils.default_process,
        )
        # Of equally similar texts, the first in the file counts as nearer.
        ranked = (-likeness).argsort(axis=1, kind="stable")[:, :count]
        found += [row[::-1] for row in ranked.tolist()]
    return found


def _examples_at(path: Path, places: set[int]) -> dict[int, list[dict[str, Any]]]:
    return {place: turns for place, turns in enumerate(_read_examples(path, "file")) if place in places}


def _read_examples(path: Path, param: str) -> Iterator[list[dict[str, Any]]]:
    """Yield the turns of each example."""
    for number, line in read_request_file(path, param=param):
        try:
            example = parse_line(line)
            if not isinstance(example, ChatExample):
                raise ExampleError("unknown_format", "is no chat; an example has 'messages'", "/messages")
        except ExampleError as error:
            raise line_error(number, error, param=param) from None
        yield [
            {key: value for key, value in turn.items() if key != "weight" and value is not None}
            for turn in msgspec.to_builtins(example.messages)
            if turn["role"] not in ("system", "developer")
        ]


def _asked(turns: Sequence[dict[str, Any]]) -> str:
    """Return the text of the user's turns."""
    return "\n".join(str(turn.get("content") or "") for turn in turns if turn["role"] == "user")
