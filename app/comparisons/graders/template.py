"""Templates as OpenAI's graders have them: texts with `{{ item.… }}` and `{{ sample.… }}` in them.

A placeholder is a path and nothing else: no expression of a caller's is evaluated, and what is filled in is
not read again. https://developers.openai.com/api/docs/guides/graders#templating
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, cast

import msgspec
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from app.comparisons.graders.base import GradeError
from app.comparisons.questions import Question
from app.comparisons.tool_calls import Call

MAX_TEMPLATE = 32_000
"""Characters in the longest template."""
MAX_FILLED = 100_000
"""Characters in the longest text that a template may become."""
MAX_TEMPLATES = 100_000
"""Characters in all templates of a grader together."""
_PLACEHOLDER = re.compile(r"\{\{((?:(?!\{\{).)*?)\}\}", re.DOTALL)
"""Ends where the next one starts, so that the search takes linear time for a text that closes none."""
_PATH = re.compile(
    r"""\s*(?:item|sample\.output_(?:text|json|tools)\b)(?:\.\w+|\[(?:\d{1,9}|'[^']*'|"[^"]*")\])*\s*"""
)
_STEP = re.compile(r"""(?P<name>\w+)|\[(?:(?P<index>\d+)|(?P<key>'[^']*'|"[^"]*"))\]""")


class TemplateError(Exception):
    """A template cannot be filled in; the message says why."""

    def __init__(self, message: str, kind: GradeError) -> None:
        super().__init__(message)
        self.kind: GradeError = kind


def _has_only_paths(template: str) -> str:
    for placeholder in _PLACEHOLDER.finditer(template):
        if not _PATH.fullmatch(placeholder[1]):
            raise PydanticCustomError(
                "template",
                "{placeholder} is no place in 'item' or 'sample'; write a path such as item.answer, "
                "item.options[0], sample.output_text, sample.output_json.name or sample.output_tools",
                {"placeholder": placeholder[0][:100]},
            )
    return template


Template = Annotated[str, Field(min_length=1, max_length=MAX_TEMPLATE), AfterValidator(_has_only_paths)]
"""A text whose placeholders are paths."""


class TemplateValues:
    """What the placeholders of a grader's templates stand for, for one answer."""

    def __init__(self, question: Question, answer: str, tool_calls: Sequence[Call]) -> None:
        self._answer = answer
        self._tool_calls = list(tool_calls)
        self._item = _item(question) if question.item is None else question.item

    def fill_in(self, template: str) -> str:
        """Return the template with every placeholder replaced.

        Raises:
            TemplateError: a place does not exist, the answer is not JSON where it has to be, or the text
                becomes too long.
        """
        text, position = "", 0
        for placeholder in _PLACEHOLDER.finditer(template):
            text += template[position : placeholder.start()] + self._text_at(placeholder[1].strip())
            position = placeholder.end()
            if len(text) > MAX_FILLED:
                break
        text += template[position:]
        if len(text) > MAX_FILLED:
            raise TemplateError(
                f"a text is longer than {MAX_FILLED:,} characters once it is filled in", "other_error"
            )
        return text

    def check_item(self, template: str) -> None:
        """Check that the item has every place in it that the template names.

        Raises:
            TemplateError: it lacks one.
        """
        for placeholder in _PLACEHOLDER.finditer(template):
            if (path := placeholder[1].strip()).startswith("item"):
                self._text_at(path)

    def _text_at(self, path: str) -> str:
        root, *steps = [
            int(step["index"]) if step["index"] else step["name"] or step["key"][1:-1]
            for step in _STEP.finditer(path)
        ]
        value: Any = self._item if root == "item" else self._sample(str(steps.pop(0)))
        for step in steps:
            value = _child(value, step, path)
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()

    def _sample(self, name: str) -> Any:
        if name == "output_text":
            return self._answer
        return self._tool_calls if name == "output_tools" else self._output_json

    @cached_property
    def _output_json(self) -> Any:
        try:
            return msgspec.json.decode(self._answer)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise TemplateError("the answer is not JSON", "sample_parse_error") from None


def _item(question: Question) -> dict[str, Any]:
    """Return what `item` is for a held-out line: its conversation, its reference and its metadata."""
    return question.metadata | {"messages": question.messages, "reference": question.reference}


def _child(value: Any, step: int | str, path: str) -> Any:
    if isinstance(value, dict) and step in cast("dict[Any, Any]", value):
        return cast("dict[Any, Any]", value)[step]
    if isinstance(value, list) and isinstance(step, int) and step < len(cast("list[Any]", value)):
        return cast("list[Any]", value)[step]
    raise TemplateError(f"there is no {path}", "invalid_variable_error")
