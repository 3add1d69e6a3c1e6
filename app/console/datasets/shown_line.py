"""A line of a file as the console shows it: an example as it is learned, or what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from app.console.datasets.learned import Reading, read_as_learned, read_plainly
from app.datasets.chat_template import ChatTemplate
from app.datasets.findings import FINDING_KINDS
from app.datasets.formats import recognise_line
from app.datasets.line_pages import Piece, Place
from app.datasets.lines import TOO_LONG
from app.datasets.types import CompletionExample, Example, ExampleError, PreferenceExample

MOST_CHARACTERS = 6_000
"""How much of an example's text is shown among others."""
TOKENIZED_BYTES = 64 * 2**10
"""Longer lines are not tokenized among others."""
_EXCERPT_BYTES = 600
_MOST_INDENTED = 100_000
"""The characters of the longest JSON that is indented."""
_MOST_GROWTH = 8
"""How many times as long that may make it: a deep list of numbers would become hundreds of times as long."""
_INDENTING = json.JSONEncoder(ensure_ascii=False, indent=2)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a line."""

    code: str
    message: str
    pointer: str
    hint: str

    @classmethod
    def of(cls, error: ExampleError) -> Problem:
        """Describe an error."""
        return cls(error.code, error.message, error.pointer, FINDING_KINDS[error.code].hint)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that an example may call."""

    name: str
    description: str
    parameters: Sequence[str]


@dataclass(frozen=True, slots=True)
class ShownLine:
    """A line; either what it says, or its beginning as it is."""

    at: Place
    bytes: int
    format: str | None = None
    readings: list[Reading] = field(default_factory=list[Reading])
    tools: list[Tool] = field(default_factory=list[Tool])
    problem: Problem | None = None
    excerpt: str = ""
    is_untold: bool = False
    """Whether its tokens were not counted, as it is long."""

    @property
    def is_pair(self) -> bool:
        """Whether it has two answers, of which one is preferred."""
        return self.format == "preference"

    @property
    def shared_turns(self) -> int:
        """How many turns at the beginning of a pair are the same in both texts."""
        if not self.is_pair:
            return 0
        both = zip(self.readings[0].turns, self.readings[1].turns, strict=False)
        return next((at for at, (one, other) in enumerate(both) if one != other), 0)


@dataclass(frozen=True, slots=True)
class Look:
    """How lines are shown."""

    template: ChatTemplate | None
    """None where no base model is prepared on this machine."""
    words: str = ""
    """What is marked."""
    most_characters: int = MOST_CHARACTERS
    tokenized_bytes: int = TOKENIZED_BYTES


def show_line(piece: Piece, look: Look) -> ShownLine:
    """Show a line."""
    content = piece.content
    size = len(content) if content else piece.after.offset - piece.at.offset
    if piece.is_too_long:
        return ShownLine(piece.at, size, problem=Problem.of(ExampleError("line_too_long", TOO_LONG)))
    try:
        form, example = recognise_line(content)
    except ExampleError as error:
        return ShownLine(piece.at, size, problem=Problem.of(error), excerpt=_excerpt(content))
    is_long = len(content) > look.tokenized_bytes
    problem: Problem | None = None
    readings: list[Reading] = []
    if look.template is not None and not is_long:
        try:
            readings = read_as_learned(
                look.template, example, words=look.words, most_characters=look.most_characters
            )
        except ExampleError as error:
            problem = Problem.of(error)
    if not readings:
        readings = read_plainly(example, words=look.words, most_characters=look.most_characters)
    return ShownLine(
        piece.at,
        size,
        form,
        readings,
        _tools(example),
        problem,
        is_untold=is_long and look.template is not None,
    )


def pretty_json(text: str) -> str:
    """Write JSON so that people can read it; what is not JSON, or would be much longer, stays as it is."""
    if len(text) > _MOST_INDENTED:
        return text
    parts: list[str] = []
    left = _MOST_GROWTH * len(text)
    try:
        for part in _INDENTING.iterencode(json.loads(text)):
            parts.append(part)
            left -= len(part)
            if left < 0:
                return text
    except (ValueError, RecursionError):
        return text
    return "".join(parts)


def _excerpt(content: bytes) -> str:
    text = content[:_EXCERPT_BYTES].decode("utf-8", "replace")
    return text + ("…" if len(content) > _EXCERPT_BYTES else "")


def _tools(example: Example) -> list[Tool]:
    if isinstance(example, CompletionExample):
        return []
    declared = example.input.tools if isinstance(example, PreferenceExample) else example.tools
    return [_tool(each) for each in declared or ()]


def _tool(declared: dict[str, Any]) -> Tool:
    function = _object(declared.get("function"))
    parameters = _object(_object(function.get("parameters")).get("properties"))
    return Tool(str(function.get("name", "")), str(function.get("description") or ""), list(parameters))


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
