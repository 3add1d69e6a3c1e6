"""The `json_match` grader, for answers that are JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, cast

import msgspec
import regex
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import override

from app.comparisons.graders.base import MAX_WEIGHT, Grade, TextGrader, invalid_grader
from app.comparisons.questions import Question
from app.core.json_schema import SchemaError, SchemaUnusableError, check_schema, first_error

MAX_FIELDS = 100
_FENCE = regex.compile(r"\s*```[\w-]*\n(.*)\n\s*```\s*", regex.DOTALL)
_MISSING = object()
"""Stands for a value that is not there, since None is JSON's null."""


class JsonMatch(TextGrader):
    """Gives 1 if the answer, read as JSON, equals the reference; the order of keys does not count.

    With `fields`, the score is the weighted share of fields that equal the reference's. With a `schema`, an
    answer that is not valid gets 0 whatever its fields; with `match_reference: false`, only validity counts.
    """

    type: Literal["json_match"] = "json_match"
    fields: dict[str, float] | None = Field(default=None, min_length=1, max_length=MAX_FIELDS)
    """The weight of each field by its path, such as `address.city` or `items.0.price`."""
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    """A JSON Schema, of draft 2020-12 unless it says otherwise."""
    match_reference: bool = True
    allow_code_fence: bool = False
    """Whether JSON between ``` marks is read as well."""

    @field_validator("fields", mode="before")
    @classmethod
    def _equal_weights(cls, fields: Any) -> Any:
        """Read a list of paths as paths of weight 1."""
        if not isinstance(fields, list):
            return fields
        paths = cast("list[Any]", fields)
        for place, path in enumerate(paths):
            if not isinstance(path, str):
                raise PydanticCustomError(
                    "path", "path {place} of the list is no text; paths are like 'a.b'", {"place": place + 1}
                )
        return dict.fromkeys(paths, 1.0)

    @field_validator("fields")
    @classmethod
    def _weights_in_range(cls, fields: dict[str, float] | None) -> dict[str, float] | None:
        for path, weight in (fields or {}).items():
            if not 0 < weight <= MAX_WEIGHT:
                raise PydanticCustomError(
                    "weight",
                    "the weight of '{path}' must be above 0, and at most {most}",
                    {"path": path[:80], "most": f"{MAX_WEIGHT:,}"},
                )
        return fields

    @field_validator("json_schema")
    @classmethod
    def _schema_is_valid(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            try:
                check_schema(schema)
            except SchemaError as error:
                raise PydanticCustomError("schema", "{reason}", {"reason": str(error)}) from None
        return schema

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if not self.match_reference and (self.json_schema is None or self.fields is not None):
            raise PydanticCustomError(
                "match_reference", "match_reference: false needs a schema, and leaves fields out", {}
            )
        return self

    @override
    def grade_text(self, reference: str, answer: str) -> Grade:
        value = self._read(answer)
        if value is _MISSING:
            return Grade(0.0, "the answer is not JSON")
        if self.json_schema is not None:
            try:
                if wrong := first_error(self.json_schema, value):
                    return Grade(0.0, wrong)
            except SchemaUnusableError as error:
                return Grade(None, str(error))
        if not self.match_reference:
            return Grade(1.0)
        return self._compare(self._read(reference), value)

    @override
    def misfit(self, reference: str) -> str | None:
        """Return why no answer can be compared with this reference, or None if answers can.

        Raises:
            SchemaUnusableError: the schema cannot be applied to this reference.
        """
        value = self._read(reference)
        if value is _MISSING and self.match_reference:
            return "is not JSON"
        if self.json_schema is not None:
            wrong = first_error(self.json_schema, None if value is _MISSING else value)
            if wrong and self.match_reference:
                return f"would not pass itself: {wrong}"
        if not self.match_reference:
            return None
        grade = self._compare(value, value)
        return None if grade.score == 1 else f"would not pass itself: {grade.detail}"

    @override
    def check_fits(self, questions: Sequence[Question], *, param: str = "grader") -> None:
        for question in questions:
            try:
                super().check_fits([question], param=param)
            except SchemaUnusableError as error:
                message = f"cannot be applied to line {question.line}'s reference: {error}"
                raise invalid_grader(f"{param}.schema", message) from None
        for path in self.fields or {}:
            if not any(self.has_field(question.reference, path) for question in questions):
                raise invalid_grader(
                    f"{param}.fields.{path}", "json_match does not fit the file: no reference has this field"
                )

    def has_field(self, reference: str, path: str) -> bool:
        """Return whether the path leads to a value in the reference."""
        return _at(self._read(reference), path) is not _MISSING

    def _compare(self, wanted: Any, given: Any) -> Grade:
        if self.fields is None:
            right = equal_values(wanted, given)
            return Grade(float(right), "" if right else "differs from the reference")
        wrong = [path for path in self.fields if not equal_values(_at(wanted, path), _at(given, path))]
        lost = sum(self.fields[path] for path in wrong)
        detail = f"wrong: {', '.join(wrong)}"[:300] if wrong else ""
        return Grade(1 - lost / sum(self.fields.values()) if len(wrong) < len(self.fields) else 0.0, detail)

    def _read(self, text: str) -> Any:
        fence = _FENCE.fullmatch(text) if self.allow_code_fence else None
        try:
            return msgspec.json.decode(fence[1] if fence else text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return _MISSING


def _at(value: Any, path: str) -> Any:
    """Return the value at a path, or `_MISSING`. A key may itself contain dots."""
    while True:
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            if path in fields:
                return fields[path]
        step, _, path = path.partition(".")
        if isinstance(value, dict):
            value = cast("dict[str, Any]", value).get(step, _MISSING)
        elif isinstance(value, list):
            value = _item(cast("list[Any]", value), step)
        else:
            return _MISSING
        if not path:
            return value


def _item(values: list[Any], step: str) -> Any:
    # No list is that long, and int() refuses a number of thousands of digits.
    position = int(step) if step.isdecimal() and len(step) < 10 else len(values)
    return values[position] if position < len(values) else _MISSING


def equal_values(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal: 1 equals 1.0, and neither equals true.

    The pending pairs are kept in a list, since answers may be nested deeper than Python recurses.
    """
    waiting = [(one, other)]
    while waiting:
        left, right = waiting.pop()
        if isinstance(left, bool) or isinstance(right, bool):
            if left is not right:
                return False
        elif isinstance(left, dict) and isinstance(right, dict):
            fields, others = cast("dict[str, Any]", left), cast("dict[str, Any]", right)
            if fields.keys() != others.keys():
                return False
            waiting += [(value, others[key]) for key, value in fields.items()]
        elif isinstance(left, list) and isinstance(right, list):
            items, these = cast("list[Any]", left), cast("list[Any]", right)
            if len(items) != len(these):
                return False
            waiting += zip(items, these, strict=True)
        elif left is _MISSING or left != right:
            return False
    return True
