"""JSON Schemas in requests: those that a model only reads, and those that what it writes must fit.

An engine compiles a schema of the second kind to a grammar. In xgrammar 0.2.8, with a vocabulary of 49,000
tokens, one core of a small machine needs 0.3 s for 500 optional properties of one object, four times as long
for twice as many; 7 ms for each character that `maxLength` counts, up to 128, where equal limits count once;
and 7 ms for each character of a pattern times its parts that may have several lengths. The bounds keep the
worst schema below 12 s, which engines spend in threads that give way to everything else
(`workers.inference.grammars`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, cast

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from app.core.json_schema import LONGEST_PATH, SchemaError, check_schema
from app.core.patterns import count_choices, expanded_length

MAX_PROPERTIES = 500
MAX_ENUM_VALUES = 1000
MAX_LENGTH = 10_000
"""The most characters, items and properties that a schema may count, all its parts together; equal limits of
texts count once."""
MAX_LENGTHS = 1024
"""The same for texts alone, none of which counts for more than `_COSTLIEST_LENGTH`."""
_COSTLIEST_LENGTH = 128
MAX_PATTERNS_COST = 1500
"""The largest `expanded_length` of all patterns together, each times its `count_choices`."""
_IN_PATTERNS = "characters in patterns, written out and counted again for each part of several lengths"
_TEXT_COUNTS = ("minLength", "maxLength")
_COUNTS = (*_TEXT_COUNTS, "minItems", "maxItems", "minProperties", "maxProperties")
_IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")
"""What applies to the same value as the schema around it."""
_MAPS = ("properties", "$defs", "definitions", "dependentSchemas", "dependencies")
"""What holds schemas by names of the user's, which may be those of keywords."""
_DATA = ("const", "default", "enum", "example", "examples")
"""What holds values, in which nothing is a keyword."""
MAX_REPEATED = 128
"""The largest count in a pattern; of larger ones, xgrammar's cache loses a part of the grammar."""
_COUNT = re.compile(r"(?<!\\)\{(\d*)(?:,(\d*))?\}")
_BACK_REFERENCE = re.compile(r"\\[1-9]|\\k|\(\?P=")


def check_constraint(schema: dict[str, Any]) -> None:
    """Check that an engine can compile a schema that `check_schema` has passed, and soon.

    Raises:
        SchemaError: it cannot; the message is a predicate, as in "refers to itself without end".
    """
    for path, node in _schemas_in(schema):
        pattern = node.get("pattern")
        if not isinstance(pattern, str):
            continue
        if _BACK_REFERENCE.search(pattern):
            raise SchemaError(f"has a pattern ({path}) that refers back to a group")
        if any(int(count or 0) > MAX_REPEATED for counts in _COUNT.findall(pattern) for count in counts):
            raise SchemaError(f"has a pattern ({path}) that counts further than {MAX_REPEATED}")
    _check_references(schema)
    check_costs([schema])


def check_costs(schemas: Iterable[dict[str, Any]]) -> None:
    """Check that an engine can compile several schemas for one answer soon.

    Raises:
        SchemaError: together they are too large.
    """
    properties = enum_values = counted = 0
    lengths: set[tuple[int, int]] = set()
    patterns: set[str] = set()
    for node in (node for schema in schemas for _, node in _schemas_in(schema)):
        properties += _length(node.get("properties"))
        enum_values += _length(node.get("enum"))
        counts = {
            name: max(0, int(node[name])) for name in _COUNTS if isinstance(node.get(name), int | float)
        }
        counted += sum(count for name, count in counts.items() if name not in _TEXT_COUNTS)
        lengths.add((counts.get("minLength", 0), counts.get("maxLength", 0)))
        patterns |= {node["pattern"]} if isinstance(node.get("pattern"), str) else set()
    lengths_cost = sum(min(max(each), _COSTLIEST_LENGTH) for each in lengths)
    patterns_cost = sum(expanded_length(each) * max(1, count_choices(each)) for each in patterns)
    for count, most, what in (
        (properties, MAX_PROPERTIES, "properties"),
        (enum_values, MAX_ENUM_VALUES, "values in enums"),
        (counted + sum(map(max, lengths)), MAX_LENGTH, "characters, items and properties to count"),
        (lengths_cost, MAX_LENGTHS, "characters to count in texts; use fewer different limits"),
        (patterns_cost, MAX_PATTERNS_COST, _IN_PATTERNS),
    ):
        if count > most:
            raise SchemaError(f"has more than {most:,} {what}")


def _length(value: Any) -> int:
    return len(cast("Any", value)) if isinstance(value, dict | list) else 0


def _schemas_in(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every schema within a schema, itself included, with the beginning of its path.

    What stands under an unknown keyword counts as one, since a reference may lead there.
    """
    waiting: list[tuple[str, Any, bool]] = [("$", schema, False)]
    while waiting:
        path, value, is_map = waiting.pop()
        if isinstance(value, list):
            items = cast("list[Any]", value)
            waiting += [(f"{path}[{at}]"[:LONGEST_PATH], item, False) for at, item in enumerate(items)]
        if not isinstance(value, dict):
            continue
        node = cast("dict[str, Any]", value)
        if not is_map:
            yield path, node
        waiting += [
            (f"{path}.{name}"[:LONGEST_PATH], part, not is_map and name in _MAPS)
            for name, part in node.items()
            if is_map or name not in _DATA
        ]


def _check_references(schema: dict[str, Any]) -> None:
    """Check that each reference leads to a part of the schema, and not back to itself within one value."""
    schemas = {id(node) for _, node in _schemas_in(schema)}
    checked: set[int] = set()

    def follow(node: Any, above: frozenset[int]) -> None:
        if not isinstance(node, dict) or id(cast("object", node)) in checked:
            return
        if id(cast("object", node)) in above:
            raise SchemaError("refers to itself without end")
        if id(cast("object", node)) not in schemas:
            raise SchemaError("refers to a part of it that is no schema")
        for part in _applied_in_place(schema, cast("dict[str, Any]", node)):
            follow(part, above | {id(cast("object", node))})
        checked.add(id(cast("object", node)))

    try:
        for _, node in _schemas_in(schema):
            follow(node, frozenset())
    except RecursionError:
        raise SchemaError("has a longer chain of references than can be followed") from None


def _applied_in_place(schema: dict[str, Any], node: dict[str, Any]) -> Iterator[Any]:
    if isinstance(reference := node.get("$ref"), str):
        yield _target(schema, reference)
    for name in _IN_PLACE:
        part = node.get(name)
        yield from cast("list[Any]", part) if isinstance(part, list) else [part]


def _target(schema: dict[str, Any], reference: str) -> Any:
    if reference != "#" and not reference.startswith("#/"):
        raise SchemaError(f"refers to what is not in it ({reference[:80]}); only '#/…' is followed")
    place: Any = schema
    for part in reference.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(place, dict) or name not in place:
            raise SchemaError(f"refers to what is not in it ({reference[:80]})")
        place = cast("dict[str, Any]", place)[name]
    return place


def _shown(schema: dict[str, Any]) -> dict[str, Any]:
    try:
        check_schema(schema)
    except SchemaError as error:
        raise PydanticCustomError("invalid_schema", "the schema {problem}", {"problem": str(error)}) from None
    return schema


def _compiled(schema: dict[str, Any]) -> dict[str, Any]:
    try:
        check_constraint(schema)
    except SchemaError as error:
        raise PydanticCustomError("invalid_schema", "the schema {problem}", {"problem": str(error)}) from None
    return schema


ShownSchema = Annotated[dict[str, Any], AfterValidator(_shown)]
"""A schema that a model reads, such as a function's parameters."""
ConstrainingSchema = Annotated[ShownSchema, AfterValidator(_compiled)]
"""A schema that what a model writes must fit."""
