"""Decodes a line into a type, and turns what does not fit into an error that names the place."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from app.datasets.strict_json import escape
from app.datasets.types import ROLES, ExampleError

T = TypeVar("T")


def decode_as(decoder: msgspec.json.Decoder[T], line: bytes) -> T:
    """Decodes the line into the decoder's type.

    Raises:
        ExampleError: a field is missing or of the wrong type.
    """
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `")
        raise _wrong_field(reason, _pointer(path)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ExampleError("invalid_json", f"is not valid JSON: {describe_error(error)}") from None


def _wrong_field(reason: str, pointer: str) -> ExampleError:
    """Returns the error for a field that does not fit; the most common mistakes have codes of their own."""
    last = pointer.rsplit("/", 1)[-1]
    if reason.startswith("Invalid enum value") and last == "role":
        role = reason.removeprefix("Invalid enum value '").removesuffix("'")
        roles = ", ".join(ROLES)
        return ExampleError("unknown_role", f"has the unknown role {role[:40]!r}; roles are {roles}", pointer)
    if last == "weight":
        return ExampleError("invalid_weight", "has a weight that is neither 0 nor 1", pointer)
    if reason.startswith("Invalid value '") and last == "type":
        kind = reason.removeprefix("Invalid value '").removesuffix("'")
        return ExampleError(
            "unsupported_content",
            f"has a content part of type {kind[:40]!r}: only text can be learned",
            pointer.removesuffix("/type"),
        )
    if reason.startswith("Object missing required field"):
        pointer = f"{pointer}/{escape(reason.split('`')[1])}"
        return ExampleError("missing_field", f"lacks a field: {reason}", pointer)
    return ExampleError("invalid_field", f"has a wrong field: {reason}", pointer)


def describe_error(error: Exception) -> str:
    """Returns msgspec's message for malformed JSON without its prefix."""
    return str(error).removeprefix("JSON is malformed: ") or type(error).__name__


def _pointer(path: str) -> str:
    """Turns a path such as `$.messages[0].role` into a JSON pointer."""
    return path.rstrip("`").removeprefix("$").replace("[", "/").replace("]", "").replace(".", "/")
