"""The grader for answers that are JSON: valid by a schema, equal to the reference, or equal in some fields.

Schemas come from users. So none is fetched from elsewhere, and a pattern in one is limited in time.
"""

from __future__ import annotations

import functools
import math
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Literal, LiteralString, NoReturn, Self, cast

import msgspec
import regex
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import override

from app.comparisons.graders.patterns import (
    MAX_EXPANDED_LENGTH,
    MAX_PATTERN,
    PatternError,
    compile_pattern,
    expanded_length,
)
from app.comparisons.graders.text import REGEX_SECONDS, Grade, TextGrader

MAX_FIELDS = 100
MAX_WEIGHT = 1_000_000_000
MAX_SCHEMA_BYTES = 64 * 2**10
MAX_SCHEMA_OBJECTS = 2000
SCHEMA_SECONDS = 1.0
"""What a schema may compute on one answer."""
_FENCE = regex.compile(r"\s*```[\w-]*\n(.*)\n\s*```\s*", regex.DOTALL)
_NOTHING = object()


class SchemaUnusableError(Exception):
    """A schema that cannot be applied: it refers to what is not there or to itself, or explodes."""


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
    def _weights_count(cls, fields: dict[str, float] | None) -> dict[str, float] | None:
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
            except SchemaUnusableError as error:
                return Grade(None, str(error))
        if not self.match_reference:
            return Grade(1.0)
        return self._compared(self._read(reference), value)

    @override
    def misfit(self, reference: str) -> str | None:
        """As for any grader.

        Raises:
            SchemaUnusableError: the schema cannot be applied to this reference.
        """
        value = self._read(reference)
        if value is _NOTHING and self.match_reference:
            return "is not JSON"
        if self.json_schema is not None:
            wrong = _first_error(self.json_schema, None if value is _NOTHING else value)
            if wrong and self.match_reference:
                return f"would not pass itself: {wrong}"
        if not self.match_reference:
            return None
        grade = self._compared(value, value)
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
    while True:
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            if path in fields:
                return fields[path]
        step, _, path = path.partition(".")
        if isinstance(value, dict):
            value = cast("dict[str, Any]", value).get(step, _NOTHING)
        elif isinstance(value, list):
            value = _item(cast("list[Any]", value), step)
        else:
            return _NOTHING
        if not path:
            return value


def _item(values: list[Any], step: str) -> Any:
    # No list has as many items as a number of so many digits says, and int() refuses thousands of them.
    position = int(step) if step.isdecimal() and len(step) < 10 else len(values)
    return values[position] if position < len(values) else _NOTHING


def _equal(one: Any, other: Any) -> bool:
    """JSON's equality: 1 is 1.0, and neither is true. By a list of our own, as answers may be deep."""
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
        elif left is _NOTHING or left != right:
            return False
    return True


def _check_schema(schema: dict[str, Any]) -> None:
    """Refuses what is no schema, and what could not be applied in limited time."""
    from jsonschema import ValidationError, validators  # noqa: PLC0415 - takes memory that few need

    if not isinstance(schema.get("$schema", ""), str):
        _refuse("has a $schema that is no text")
    _check_size(schema)
    patterns = 0
    for place, node in _nodes(schema):
        place = place[:80]  # noqa: PLW2901 - keys are a caller's own words
        if "patternProperties" in node:
            _refuse("has patternProperties ({place}), which is not supported", place=place)
        if isinstance(pattern := node.get("pattern"), str):
            if len(pattern) > MAX_PATTERN:
                _refuse(
                    "has a pattern ({place}) of more than {most} characters", place=place, most=MAX_PATTERN
                )
            try:
                compile_pattern(pattern)
            except PatternError as error:
                _refuse("has a pattern ({place}) that {reason}", place=place, reason=str(error))
            patterns += expanded_length(pattern)
            if patterns > 10 * MAX_EXPANDED_LENGTH:
                _refuse("has patterns that together repeat too much; use smaller counts, or * and +")
    dialect: Any = validators.validator_for(schema)
    meta: Any = cast("Any", validators).extend(
        validators.validator_for(dialect.META_SCHEMA), {"uniqueItems": _unique_items}
    )
    try:
        checked = meta(dialect.META_SCHEMA, format_checker=meta.FORMAT_CHECKER)
        wrong: ValidationError | None = next(checked.iter_errors(schema), None)
    except RecursionError:
        _refuse("is nested too deep")
    except Exception as unexpected:
        _refuse("is no JSON Schema: {reason}", reason=_said(unexpected))
    if wrong is not None:
        _refuse(
            "is no JSON Schema: {place}: {reason}", place=wrong.json_path[:80], reason=wrong.message[:200]
        )


def _check_size(schema: dict[str, Any]) -> None:
    """Before anything takes its time with it."""
    try:
        size = len(msgspec.json.encode(schema))
    except (OverflowError, RecursionError, UnicodeError, msgspec.MsgspecError, TypeError) as error:
        _refuse("is no JSON Schema: {reason}", reason=_said(error))
    if size > MAX_SCHEMA_BYTES:
        _refuse("is larger than {most} bytes", most=f"{MAX_SCHEMA_BYTES:,}")
    waiting: list[Any] = [schema]
    objects = 0
    while waiting:
        value = waiting.pop()
        objects += isinstance(value, dict | bool)
        if isinstance(value, dict):
            waiting += cast("dict[str, Any]", value).values()
        elif isinstance(value, list):
            waiting += cast("list[Any]", value)
        elif isinstance(value, float) and not math.isfinite(value):
            _refuse("has NaN or Infinity in it, which JSON does not have")
    if objects > MAX_SCHEMA_OBJECTS:
        _refuse("has more than {most} objects and booleans in it", most=f"{MAX_SCHEMA_OBJECTS:,}")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


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
        with _limited_time():
            error = next(_schema_validator(msgspec.json.encode(schema)).iter_errors(value), None)
            return f"not valid at {error.json_path[:80]}: {error.message[:200]}" if error else None
    except _TooLongError:
        raise SchemaUnusableError(
            f"the schema took longer than {SCHEMA_SECONDS:g} s on this answer"
        ) from None
    except TimeoutError:
        raise SchemaUnusableError(
            f"a pattern of the schema took longer than {REGEX_SECONDS} s on this answer"
        ) from None
    except Unresolvable as missing:
        raise SchemaUnusableError(f"the schema refers to what is not in it: {str(missing)[:200]}") from None
    except RecursionError:
        raise SchemaUnusableError(
            "the schema refers to itself without end, or the answer is too deep"
        ) from None
    except Exception as error:
        raise SchemaUnusableError(f"the schema cannot be applied: {_said(error)}") from None


class _TooLongError(Exception):
    """A schema is not done with an answer in time."""


@contextmanager
def _limited_time() -> Generator[None]:
    """Raises `_TooLongError` in the block after `SCHEMA_SECONDS` of this process's computing.

    Only in the main thread, where signals arrive: children grade there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGVTALRM, stop)
    # Again and again, as an error that is raised while something is being disposed of is lost.
    signal.setitimer(signal.ITIMER_VIRTUAL, SCHEMA_SECONDS, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@functools.lru_cache(maxsize=16)
def _schema_validator(encoded: bytes) -> Any:
    """A schema's validator: its patterns are limited in time, and it has no way to fetch anything."""
    from jsonschema import Draft202012Validator, ValidationError, validators  # noqa: PLC0415 - see _check_schema
    from referencing.jsonschema import EMPTY_REGISTRY  # noqa: PLC0415

    def pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not _search(pattern, instance):
            yield ValidationError(f"{instance[:80]!r} does not match {pattern!r}")

    schema = msgspec.json.decode(encoded)
    dialect: Any = validators.validator_for(schema, Draft202012Validator)
    limited: Any = cast("Any", validators).extend(dialect, {"pattern": pattern, "uniqueItems": _unique_items})
    return limited(schema, registry=EMPTY_REGISTRY)


def _search(pattern: str, text: str) -> bool:
    return _compiled(pattern).search(text, timeout=REGEX_SECONDS) is not None


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> regex.Pattern[str]:
    return compile_pattern(pattern)


def _unique_items(_validator: Any, wanted: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    """As jsonschema's own, which compares every item with every other."""
    from jsonschema import ValidationError  # noqa: PLC0415 - see _check_schema

    if wanted and isinstance(instance, list):
        items = cast("list[Any]", instance)
        if len({msgspec.json.encode(_plain_numbers(item), order="sorted") for item in items}) < len(items):
            yield ValidationError("some of its items are equal")


def _plain_numbers(value: Any) -> Any:
    """The value, 1.0 written as 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain_numbers(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in cast("dict[str, Any]", value).items()}
    return value
