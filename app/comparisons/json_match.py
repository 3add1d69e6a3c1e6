"""The grader for answers that are JSON: valid by a schema, equal to the reference, or equal in some fields.

Schemas come from users. So none is fetched from elsewhere, and a pattern in one is limited in time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Literal, LiteralString, NoReturn, Self, cast

import msgspec
import regex
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import override

from app.comparisons.text_graders import REGEX_SECONDS, Grade, TextGrader

MAX_FIELDS = 100
_FENCE = regex.compile(r"\s*```[\w-]*\n(.*)\n\s*```\s*", regex.DOTALL)
_NOTHING = object()


class _SchemaUnusableError(Exception):
    """A schema that refers to what is not there, or to itself without end."""


class JsonMatch(TextGrader):
    """Without settings 1 if the answer, read as JSON, equals the reference; key order does not count.

    With `fields` the weighted share of those that equal the reference's. With a `schema` an answer that is
    not valid gets 0 whatever its fields; `match_reference: false` leaves validity as all that counts.
    """

    type: Literal["json_match"] = "json_match"
    fields: dict[str, float] | None = Field(default=None, min_length=1, max_length=MAX_FIELDS)
    """Weight by path: `address.city`, `items.0.price`."""
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    """JSON Schema, by default of draft 2020-12."""
    match_reference: bool = True
    allow_code_fence: bool = False
    """Whether JSON between ``` marks is read, too."""

    @field_validator("fields", mode="before")
    @classmethod
    def _equal_weights(cls, fields: Any) -> Any:
        """A list of paths is as good as paths of weight 1."""
        return dict.fromkeys(cast("list[Any]", fields), 1.0) if isinstance(fields, list) else fields

    @field_validator("fields")
    @classmethod
    def _weights_count(cls, fields: dict[str, float] | None) -> dict[str, float] | None:
        for path, weight in (fields or {}).items():
            if not 0 < weight < float("inf"):
                raise PydanticCustomError(
                    "weight", "the weight of '{path}' must be above 0", {"path": path[:80]}
                )
        return fields

    @field_validator("json_schema")
    @classmethod
    def _schema_is_one(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            _check_schema(schema)
        return schema

    @model_validator(mode="after")
    def _has_a_say(self) -> Self:
        if not self.match_reference and (self.json_schema is None or self.fields is not None):
            raise PydanticCustomError(
                "match_reference", "match_reference: false needs a schema, and leaves fields out", {}
            )
        return self

    @override
    def grade(self, reference: str, answer: str) -> Grade:
        value = self._read(answer)
        if value is _NOTHING:
            return Grade(0.0, "the answer is not JSON")
        if self.json_schema is not None:
            try:
                if wrong := _first_error(self.json_schema, value):
                    return Grade(0.0, wrong)
            except TimeoutError:
                return Grade(
                    None, f"a pattern of the schema took longer than {REGEX_SECONDS} s on this answer"
                )
            except _SchemaUnusableError as error:
                return Grade(None, str(error))
        if not self.match_reference:
            return Grade(1.0)
        return self._compared(self._read(reference), value)

    @override
    def misfit(self, reference: str) -> str | None:
        if not self.match_reference:
            return None
        if self._read(reference) is _NOTHING:
            return "is not JSON"
        grade = self.grade(reference, reference)
        return None if grade.score == 1 else f"would not pass itself: {grade.detail}"

    def has_field(self, reference: str, path: str) -> bool:
        """Whether the path leads somewhere in a reference."""
        return _at(self._read(reference), path) is not _NOTHING

    def _compared(self, wanted: Any, given: Any) -> Grade:
        if self.fields is None:
            right = _equal(wanted, given)
            return Grade(float(right), "" if right else "differs from the reference")
        wrong = [path for path in self.fields if not _equal(_at(wanted, path), _at(given, path))]
        lost = sum(self.fields[path] for path in wrong)
        detail = f"wrong: {', '.join(wrong)}"[:300] if wrong else ""
        return Grade(1 - lost / sum(self.fields.values()) if len(wrong) < len(self.fields) else 0.0, detail)

    def _read(self, text: str) -> Any:
        fence = _FENCE.fullmatch(text) if self.allow_code_fence else None
        try:
            return msgspec.json.decode(fence[1] if fence else text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return _NOTHING


def _at(value: Any, path: str) -> Any:
    """What is found along a path; `_NOTHING` where it ends early. A key may itself have dots in it."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if path in fields:
            return fields[path]
    step, _, rest = path.partition(".")
    if isinstance(value, dict):
        found = cast("dict[str, Any]", value).get(step, _NOTHING)
    elif isinstance(value, list) and step.isdecimal() and int(step) < len(cast("list[Any]", value)):
        found = cast("list[Any]", value)[int(step)]
    else:
        return _NOTHING
    return _at(found, rest) if rest else found


def _equal(one: Any, other: Any) -> bool:
    """JSON's equality: 1 is 1.0, and neither is true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        left, right = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(one, list) and isinstance(other, list):
        first, second = cast("list[Any]", one), cast("list[Any]", other)
        return len(first) == len(second) and all(map(_equal, first, second))
    return one is not _NOTHING and one == other


def _check_schema(schema: dict[str, Any]) -> None:
    """Refuses what is no schema, and what could not be applied in limited time."""
    from jsonschema import SchemaError, validators  # noqa: PLC0415 - takes memory that few need

    if not isinstance(schema.get("$schema", ""), str):
        _refuse("has a $schema that is no text")
    for place, node in _nodes(schema):
        if "patternProperties" in node:
            _refuse("has patternProperties ({place}), which is not supported", place=place)
        if isinstance(pattern := node.get("pattern"), str):
            try:
                regex.compile(pattern)
            except (regex.error, RecursionError, OverflowError, MemoryError) as error:
                _refuse("has a pattern that does not compile ({place}): {reason}", place=place, reason=error)
    try:
        validators.validator_for(schema).check_schema(schema)
    except SchemaError as error:
        _refuse(
            "is no JSON Schema: {place}: {reason}", place=error.json_path[:80], reason=error.message[:200]
        )
    except RecursionError:
        _refuse("is nested too deep")


def _refuse(message: str, **context: Any) -> NoReturn:
    raise PydanticCustomError("schema", cast("LiteralString", message), context) from None


def _nodes(document: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object in a JSON document, with its place."""
    waiting = [("$", document)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            yield place, fields
            waiting += [(f"{place}.{key}", below) for key, below in fields.items()]
        elif isinstance(value, list):
            waiting += [(f"{place}[{index}]", below) for index, below in enumerate(cast("list[Any]", value))]


def _first_error(schema: dict[str, Any], value: Any) -> str | None:
    from referencing.exceptions import Unresolvable  # noqa: PLC0415 - see _check_schema

    try:
        error = next(_schema_validator(msgspec.json.encode(schema)).iter_errors(value), None)
    except Unresolvable as missing:
        raise _SchemaUnusableError(f"the schema refers to what is not in it: {str(missing)[:200]}") from None
    except RecursionError:
        raise _SchemaUnusableError("the schema refers to itself without end") from None
    return f"not valid at {error.json_path[:80]}: {error.message[:200]}" if error else None


@functools.lru_cache(maxsize=16)
def _schema_validator(encoded: bytes) -> Any:
    """A schema's validator: its patterns are limited in time, and it has no way to fetch anything."""
    from jsonschema import Draft202012Validator, ValidationError, validators  # noqa: PLC0415 - see _check_schema
    from referencing.jsonschema import EMPTY_REGISTRY  # noqa: PLC0415

    def pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not regex.search(pattern, instance, timeout=REGEX_SECONDS):
            yield ValidationError(f"{instance[:80]!r} does not match {pattern!r}")

    schema = msgspec.json.decode(encoded)
    dialect: Any = validators.validator_for(schema, Draft202012Validator)
    limited: Any = cast("Any", validators).extend(dialect, {"pattern": pattern})
    return limited(schema, registry=EMPTY_REGISTRY)
