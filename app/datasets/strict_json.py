"""Checks that a line is JSON (RFC 8259) that every reader understands the same way.

msgspec is fast, but silently accepts duplicate keys, `\\u0000` and numbers that other readers refuse.
`find_flaw` is slow and thorough; it is for lines that may have one of these, or that msgspec refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, cast

MAX_DEPTH = 64
_MAX_DIGITS = 300
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with a line as JSON, and where."""

    code: str
    message: str
    pointer: str = ""


@dataclass(frozen=True, slots=True)
class _BadNumber:
    code: str
    message: str


class _DuplicateKey(dict[str, Any]):
    """An object with a duplicate key."""

    key: str = ""


def find_flaw(line: bytes) -> Flaw | None:
    """Returns the first flaw in a line, or None if it is valid JSON without any."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Flaw("invalid_encoding", f"is not UTF-8 (byte {error.start + 1} of the line)")
    try:
        tree = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_real,
        )
    except json.JSONDecodeError as error:
        return Flaw("invalid_json", f"is not valid JSON: {error.msg} (character {error.pos + 1})")
    except RecursionError:
        return _too_deep("")
    return _search(tree)


def escape(key: str) -> str:
    """Escapes a key for use in a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def _search(tree: Any) -> Flaw | None:
    """Searches depth first, with a stack of its own: the tree may be too deep for recursion."""
    waiting: list[tuple[Any, str, int]] = [(tree, "", 0)]
    while waiting:
        value, pointer, depth = waiting.pop()
        if depth > MAX_DEPTH:
            return _too_deep(pointer)
        if isinstance(value, _BadNumber):
            return Flaw(value.code, value.message, pointer)
        if isinstance(value, str):
            if (flaw := _flaw_of_text(value, pointer)) is not None:
                return flaw
        elif isinstance(value, dict):
            items = cast("dict[str, Any]", value)
            if isinstance(value, _DuplicateKey):
                name = value.key
                message = f"has the key {name[:40]!r} twice"
                return Flaw("duplicate_key", message, f"{pointer}/{_printable(escape(name))}")
            for key in items:
                if (flaw := _flaw_of_text(key, pointer)) is not None:
                    return flaw
            inner = [(item, f"{pointer}/{escape(key)}", depth + 1) for key, item in items.items()]
            waiting.extend(reversed(inner))
        elif isinstance(value, list):
            elements = cast("list[Any]", value)
            waiting.extend(
                (elements[index], f"{pointer}/{index}", depth + 1)
                for index in range(len(elements) - 1, -1, -1)
            )
    return None


def _flaw_of_text(text: str, pointer: str) -> Flaw | None:
    if "\x00" in text:
        return Flaw("null_character", "has the character \\u0000 in a text", pointer)
    if not text.isascii() and _SURROGATE.search(text):
        return Flaw(
            "lone_surrogate",
            "has an unpaired surrogate (\\ud800 to \\udfff), which is not a valid character",
            pointer,
        )
    return None


def _too_deep(pointer: str) -> Flaw:
    return Flaw("nested_too_deep", f"is nested more than {MAX_DEPTH} deep", pointer)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    seen: set[str] = set()
    duplicate = _DuplicateKey(made)
    for key, _ in pairs:
        if key in seen:
            duplicate.key = key
            break
        seen.add(key)
    return duplicate


def _constant(name: str) -> _BadNumber:
    return _BadNumber("non_finite_number", f"has {name}, which JSON does not know")


def _integer(digits: str) -> int | _BadNumber:
    if len(digits) > _MAX_DIGITS:
        return _BadNumber("number_too_large", f"has a number of {len(digits.lstrip('-')):,} digits")
    return int(digits)


def _real(digits: str) -> float | _BadNumber:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        return _BadNumber("non_finite_number", f"has the number {digits[:20]}, which is out of range")
    return number


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
