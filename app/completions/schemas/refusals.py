"""Fields and values that OpenAI has and that are refused by name, with what to send instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, BeforeValidator, Discriminator
from pydantic_core import PydanticCustomError


def refused(reason: str) -> BeforeValidator:
    """Refuse a field unless it is null; the reason says what to send instead."""

    def check(value: Any) -> None:
        if value is not None:
            raise PydanticCustomError("unsupported_parameter", "{reason}", {"reason": reason})

    return BeforeValidator(check)


def only(*allowed: str, says: Callable[[str], str]) -> BeforeValidator:
    """Refuse every text but these; `says` makes the reason of the text."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in allowed:
            raise PydanticCustomError("unsupported_value", "{reason}", {"reason": says(value[:64])})
        return value

    return BeforeValidator(check)


def by_json_type(*expected: str) -> Discriminator:
    """Tell the types of a union apart by their type in JSON: "a text", "a list" or "an object"."""
    return Discriminator(
        _json_type,
        custom_error_type="wrong_type",
        custom_error_message=f"Input should be {' or '.join(expected)}",
    )


def _json_type(value: Any) -> str | None:
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict | BaseModel) else None
