"""Options that several commands share: declared once, and added to a command's own parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast


def add_options(command: Callable[..., None], options: Mapping[str, Any]) -> Callable[..., None]:
    """Give the command these options, which it receives as keyword arguments; None where one is not given.

    Args:
        command: takes `**` beside its own parameters.
        options: each option's annotation, as Typer reads it, by its name.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in options.items()
    ]
    cast(Any, command).__signature__ = signature.replace(parameters=[*own, *added])
    return command
