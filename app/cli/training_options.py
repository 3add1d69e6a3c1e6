"""The command line's options for a job's method and hyperparameters, made from their declarations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, cast

import typer

from app.cli.added_options import add_options
from app.fine_tuning.methods import METHODS
from app.fine_tuning.methods.hyperparameters import HYPERPARAMETERS, Hyperparameter


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command an option for every hyperparameter, which it receives as keyword arguments.

    Its parameter `method` becomes a choice of the methods.
    """
    command = add_options(command, {each.name: _option(each) for each in HYPERPARAMETERS})
    signature = inspect.signature(command)
    cast(Any, command).__signature__ = signature.replace(
        parameters=[
            each.replace(annotation=_method_option()) if each.name == "method" else each
            for each in signature.parameters.values()
        ]
    )
    return command


def _method_option() -> Any:
    meanings = "; ".join(f"`{method.name}` {method.summary}" for method in METHODS.values())
    return cast(Any, Annotated)[cast(Any, Literal)[tuple(METHODS)], typer.Option(help=f"{meanings}.")]


def _option(hyperparameter: Hyperparameter) -> Any:
    only = f" For {', '.join(hyperparameter.methods)} only." if hyperparameter.methods else ""
    shown: dict[str, Any] = {"show_default": False, "rich_help_panel": "Hyperparameters"}
    text = hyperparameter.meaning + only
    kind = hyperparameter.type
    if hyperparameter.is_number:
        option = typer.Option(min=1 if kind is int else 0, help=text, **shown)  # the service knows the bounds
    elif hyperparameter.takes_names:
        kind = object  # Typer has no unions
        metavar = "|".join([*hyperparameter.words, "NAME,…"])
        option = typer.Option(parser=_reader(hyperparameter.words), metavar=metavar, help=text, **shown)
    else:
        option = typer.Option(help=text, **shown)
    return cast(Any, Annotated)[kind | None, option]


def _reader(words: tuple[str, ...]) -> Callable[[str], str | list[str]]:
    """Return what reads one of the words, or names with commas between them."""

    def read(text: str) -> str | list[str]:
        return text if text in ("auto", *words) else [name.strip() for name in text.split(",")]

    return read
