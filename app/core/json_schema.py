"""JSON Schemas that users write: nothing in them is fetched, and what they may compute is bounded.

`jsonschema-rs` checks schemas, and `jsonschema` applies them: in the former, which is 13 times as fast, a
schema of a few lines that visits a value 2^30 times runs for minutes, where no time limit short of ending the
process can reach it.
"""

from __future__ import annotations

import functools
import math
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import jsonschema_rs
import msgspec

from app.core.patterns import (
    MAX_EXPANDED_LENGTH,
    MAX_PATTERN,
    PATTERN_SECONDS,
    PatternError,
    cached_pattern,
    compile_pattern,
    expanded_length,
)

# `jsonschema` is imported where it is used, since it takes memory that few processes need to spend.

MAX_SCHEMA_BYTES = 64 * 2**10
MAX_SCHEMA_OBJECTS = 2000
MAX_SCHEMA_DEPTH = 128
"""Objects and arrays in each other."""
LONGEST_PATH = 80
"""The most characters of a path that are kept: each value has one, and names may be long."""
SCHEMA_SECONDS = 1.0
"""The time that a schema may take on one answer."""
_DIALECTS = frozenset(
    {
        "http://json-schema.org/draft-04/schema",
        "http://json-schema.org/draft-06/schema",
        "http://json-schema.org/draft-07/schema",
        "https://json-schema.org/draft/2019-09/schema",
        "https://json-schema.org/draft/2020-12/schema",
    }
)


class SchemaError(ValueError):
    """A schema is invalid or too large; the message is a predicate, as in "is nested too deep"."""


class SchemaUnusableError(Exception):
    """A schema cannot be applied: it refers to what is not there or to itself, or it takes too long."""


def check_schema(schema: dict[str, Any]) -> None:
    """Check that this is a JSON Schema whose patterns can be compiled.

    Raises:
        SchemaError: it is not, or it is too large.
    """
    if not isinstance(schema.get("$schema", ""), str):
        raise SchemaError("has a $schema that is no text")
    _check_size(schema)
    _check_patterns(schema)
    _check_dialect(schema)


def first_error(schema: dict[str, Any], value: Any) -> str | None:
    """Return where and why a JSON value is not valid by a schema, or None if it is valid.

    Raises:
        SchemaUnusableError: the schema cannot be applied to this value.
    """
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    try:
        with _limited_time():
            error = next(_validator(msgspec.json.encode(schema)).iter_errors(value), None)
            return f"not valid at {error.json_path[:80]}: {error.message[:200]}" if error else None
    except _TooLongError:
        reason = f"the schema took longer than {SCHEMA_SECONDS:g} s on this answer"
    except TimeoutError:
        reason = f"a pattern of the schema took longer than {PATTERN_SECONDS} s on this answer"
    except Unresolvable as missing:
        reason = f"the schema refers to what is not in it: {str(missing)[:200]}"
    except RecursionError:
        reason = "the schema refers to itself without end, or the answer is too deep"
    except Exception as error:
        reason = f"the schema cannot be applied: {_describe(error)}"
    raise SchemaUnusableError(reason)


def _check_size(schema: dict[str, Any]) -> None:
    """Bound the schema before anything else takes its time with it."""
    try:
        size = len(msgspec.json.encode(schema))
    except (OverflowError, RecursionError, UnicodeError, msgspec.MsgspecError, TypeError) as error:
        raise SchemaError(f"is no JSON Schema: {_describe(error)}") from None
    if size > MAX_SCHEMA_BYTES:
        raise SchemaError(f"is larger than {MAX_SCHEMA_BYTES:,} bytes")
    values = [value for _, value in values_in(schema)]
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise SchemaError("has NaN or Infinity in it, which JSON does not have")
    if any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in values):
        raise SchemaError("has an integer in it that does not fit 64 bits")
    if sum(isinstance(value, dict | bool) for value in values) > MAX_SCHEMA_OBJECTS:
        raise SchemaError(f"has more than {MAX_SCHEMA_OBJECTS:,} objects and booleans in it")


def _check_patterns(schema: dict[str, Any]) -> None:
    total = 0
    for path, value in values_in(schema):
        if not isinstance(value, dict):
            continue
        node = cast("dict[str, Any]", value)
        if "patternProperties" in node:
            raise SchemaError(f"has patternProperties ({path}), which is not supported")
        pattern = node.get("pattern")
        if not isinstance(pattern, str):
            continue
        if len(pattern) > MAX_PATTERN:
            raise SchemaError(f"has a pattern ({path}) of more than {MAX_PATTERN} characters")
        try:
            compile_pattern(pattern)
        except PatternError as error:
            raise SchemaError(f"has a pattern ({path}) that {error}") from None
        total += expanded_length(pattern)
        if total > 10 * MAX_EXPANDED_LENGTH:
            raise SchemaError("has patterns that together repeat too much; use smaller counts, or * and +")


def _check_dialect(schema: dict[str, Any]) -> None:
    """Validate the schema by the schema of its own dialect, or of draft 2020-12 if it names no other."""
    if schema.get("$schema", "").removesuffix("#") not in _DIALECTS:
        schema = {name: value for name, value in schema.items() if name != "$schema"}  # never fetched
    try:
        jsonschema_rs.meta.validate(schema)
    except jsonschema_rs.ValidationError as wrong:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in wrong.instance_path)
        raise SchemaError(f"is no JSON Schema: ${path[:80]}: {wrong.message[:200]}") from None
    except Exception as unexpected:
        raise SchemaError(f"is no JSON Schema: {_describe(unexpected)}") from None


def values_in(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value in a JSON document with the beginning of its path.

    Raises:
        SchemaError: more than `MAX_SCHEMA_DEPTH` objects and arrays are in each other.
    """
    waiting: list[tuple[str, Any, int]] = [("$", document, 0)]
    while waiting:
        path, value, depth = waiting.pop()
        yield path, value
        children: Iterable[tuple[str, Any]] = ()
        if isinstance(value, dict):
            children = ((f"{path}.{key}", child) for key, child in cast("dict[str, Any]", value).items())
        elif isinstance(value, list):
            children = ((f"{path}[{at}]", child) for at, child in enumerate(cast("list[Any]", value)))
        if depth > MAX_SCHEMA_DEPTH:
            raise SchemaError("is nested too deep")
        waiting += [(path[:LONGEST_PATH], child, depth + 1) for path, child in children]


class _TooLongError(Exception):
    """The time that `_limited_time` allows is over."""


@contextmanager
def _limited_time() -> Generator[None]:
    """Raise `_TooLongError` in the block after it has computed for `SCHEMA_SECONDS`.

    Signals arrive in the main thread only. Child processes grade there; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGVTALRM, stop)
    # The signal is repeated, because an exception that is raised inside a destructor is lost.
    signal.setitimer(signal.ITIMER_VIRTUAL, SCHEMA_SECONDS, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@functools.lru_cache(maxsize=16)
def _validator(encoded: bytes) -> Any:
    """Return a schema's validator, whose patterns are limited in time and which cannot fetch anything."""
    from jsonschema import Draft202012Validator, ValidationError, validators  # noqa: PLC0415
    from referencing.jsonschema import EMPTY_REGISTRY  # noqa: PLC0415

    def pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
        if not isinstance(instance, str):
            return
        if cached_pattern(pattern).search(instance, timeout=PATTERN_SECONDS) is None:
            yield ValidationError(f"{instance[:80]!r} does not match {pattern!r}")

    schema = msgspec.json.decode(encoded)
    dialect: Any = validators.validator_for(schema, Draft202012Validator)
    limited: Any = cast("Any", validators).extend(dialect, {"pattern": pattern, "uniqueItems": _unique_items})
    return limited(schema, registry=EMPTY_REGISTRY)


def _unique_items(_validator: Any, wanted: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    """Validate `uniqueItems` in linear time: `jsonschema` compares every item with every other."""
    from jsonschema import ValidationError  # noqa: PLC0415

    if wanted and isinstance(instance, list):
        items = cast("list[Any]", instance)
        if len({msgspec.json.encode(_plain_numbers(item), order="sorted") for item in items}) < len(items):
            yield ValidationError("some of its items are equal")


def _plain_numbers(value: Any) -> Any:
    """Return the value with 1.0 written as 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain_numbers(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in cast("dict[str, Any]", value).items()}
    return value


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
