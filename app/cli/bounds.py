"""Bounds as options give them: a number, or the word `none` for no bound."""

from __future__ import annotations

from typing import Any

import typer
from pydantic import TypeAdapter, ValidationError


def parse_bound(text: str, option: str, kind: Any) -> Any:
    """Returns the bound that an option was given, as that type reads it; None if it is `none`.

    Raises:
        typer.BadParameter: it is neither.
    """
    if text == "none":
        return None
    try:
        return TypeAdapter[Any](kind).validate_python(text)
    except ValidationError:
        raise typer.BadParameter(
            f"{text!r} is neither a number that can be set nor 'none'.", param_hint=option
        ) from None
