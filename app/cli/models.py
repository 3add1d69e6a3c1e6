"""`toque models`: lists the models, prepares base models, and changes which of them the catalogue has."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from app.cli.added_options import add_options
from app.cli.client import DEFAULT_BASE_URL, BaseUrl, connect
from app.cli.database_session import database_session
from app.cli.db import upgrade_database
from app.cli.output import AsJson, moment, print_fields, print_json, print_table
from app.cli.parent_death import bound_to_parent
from app.cli.settings import read_settings
from app.core.child_environment import DATABASE, DOWNLOADS, child_environment, storage_secrets
from app.core.settings import BaseModelEntry

_COMMAND = [sys.executable, "-P", "-m", "workers.base_models"]
app = typer.Typer(no_args_is_help=True, help="List models; prepare, add and remove base models.")

_ENTRY_OPTIONS: dict[str, Any] = {
    "name": Annotated[
        str | None, typer.Option(show_default="from its source", help="What jobs and requests call it.")
    ],
    "context": Annotated[
        int | None,
        typer.Option(
            min=64,
            show_default="8192, or what the model and the memory allow",
            help="The most tokens of an example, and of a request with its answer.",
        ),
    ],
    "max_rank": Annotated[
        int | None, typer.Option(min=1, show_default="32", help="The highest LoRA rank of its adapters.")
    ],
    "quantization": Annotated[
        str | None,
        typer.Option(
            metavar="nf4", help="Train it in four bits, unless a job says otherwise.", show_default="none"
        ),
    ],
    "also_known_as": Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name for it; may be repeated.")
    ],
    "tool_parser": Annotated[
        str | None, typer.Option(metavar="PARSER", help="vLLM's parser of its tool calls, such as hermes.")
    ],
    "reasoning_parser": Annotated[
        str | None, typer.Option(metavar="PARSER", help="vLLM's parser of its reasoning, such as qwen3.")
    ],
    "chat_template": Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A Jinja chat template to train and serve it with instead of its own, or `smollm2`, which "
            "adds tools to SmolLM2's.",
        ),
    ],
    "chat_template_kwargs": Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="""Variables for its chat template, such as '{"enable_thinking": false}'.""",
        ),
    ],
    "allowed_template_kwargs": Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A variable of its chat template that requests may set, such as enable_thinking; may be "
            "repeated.",
        ),
    ],
}
"""What a base model's entry in the catalogue may say, and what each part is called on the command line."""


def entry_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command an option for each part of a base model's entry."""
    return add_options(command, _ENTRY_OPTIONS)


@app.command("list")
def list_models(
    base_url: BaseUrl = DEFAULT_BASE_URL,
    available: Annotated[
        bool,
        typer.Option("--available", help="List base models that can be pulled, and whether they fit here."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the base models and fine-tuned models that are served, or base models that can be pulled.

    Example: toque models list --available
    """
    if available:
        _list_available(as_json=as_json)
        return
    with connect(base_url) as client:
        models = client.models.list().data
    if as_json:
        print_json(models)
    else:
        rows = [(model.id, model.owned_by, moment(model.created)) for model in models]
        print_table(("ID", "OWNED BY", "CREATED"), rows)


def _list_available(*, as_json: bool) -> None:
    command = bound_to_parent([*_COMMAND, "available"])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=_environment(), check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
    models = json.loads(done.stdout)
    if as_json:
        print_json(models)
        return
    rows = [
        (
            model["name"],
            f"{model['parameters'] / 1e9:.1f} B",
            model["licence"] + (" (terms to accept)" if model["gated"] else ""),
            model["tool_parser"] or "no",
            _fit(model["training"]),
            _fit(model["training_nf4"]),
            _fit(model["serving"]),
            "in the catalogue" if model["in_catalogue"] else model["command"],
        )
        for model in models
    ]
    print_table(("NAME", "WEIGHTS", "LICENCE", "TOOLS", "TRAINING", "IN NF4", "SERVING", "GET IT"), rows)


def _fit(fit: dict[str, Any] | None) -> str | None:
    """Returns in words whether it fits here; None where it cannot be had at all."""
    if fit is None:
        return None
    needs = f"{fit['needs_bytes'] / 2**30:.1f} GiB"
    return f"fits: {needs}" if fit["fits"] else f"no: {needs} of {fit['has_bytes'] / 2**30:.1f}"


@app.command()
@entry_options
def pull(
    source: Annotated[
        str,
        typer.Argument(metavar="NAME|OWNER/NAME", show_default=False, help="A name, or a hub's id."),
    ],
    **entry: Any,
) -> None:
    """Prepare a base model on this machine; one that the catalogue does not have is tested and added.

    A download that breaks off goes on when the command is run again. If the storage is in a bucket, the base
    model is put there, where all other machines find it.

    Example: toque models pull qwen3-0.6b
    """
    if _find_given(source) is None or read_settings().storage_bucket:
        _ensure_database()
    raise typer.Exit(_run("pull", source, *_arguments(entry)))


@app.command()
@entry_options
def add(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|OWNER/NAME", show_default=False, help="A folder on this machine, or a hub's id."
        ),
    ],
    **entry: Any,
) -> None:
    """Test a base model on this machine, and add it to the catalogue: it can be used at once.

    Example: toque models add /data/models/our-base --name our-base --context 4096
    """
    _ensure_database()
    raise typer.Exit(_run("add", source, *_arguments(entry)))


@app.command()
def remove(
    name: Annotated[str, typer.Argument(show_default=False, help="Its name in the catalogue.")],
) -> None:
    """Take a base model that was added out of the catalogue, unless a model or a job needs it.

    Its files stay.

    Example: toque models remove our-base
    """
    from app.base_models.service import remove_base_model  # noqa: PLC0415 - SQLAlchemy is slow to import

    settings = read_settings()
    with database_session(settings) as session:
        entry = remove_base_model(session, settings, name)
    print_fields({"removed": entry.name, "files": settings.base_model_dir(entry)})


def pull_base_model(name: str) -> int:
    """Prepares a base model of the catalogue; returns the exit code."""
    return _run("pull", name)


def _run(*arguments: str) -> int:
    """Runs the command in a child process, since it needs torch; returns the exit code."""
    return subprocess.call(bound_to_parent([*_COMMAND, *arguments]), env=_environment())


def _environment() -> dict[str, str]:
    return child_environment((*DATABASE, *DOWNLOADS, *storage_secrets()), has_settings=True)


def _arguments(entry: dict[str, Any]) -> list[str]:
    """Returns the options that were given, as the child process takes them."""
    arguments: list[str] = []
    for name, value in entry.items():
        values = cast(list[object], value) if isinstance(value, list) else [value]
        arguments += [f"--{name.replace('_', '-')}={each}" for each in values if each is not None]
    return arguments


def _find_given(name: str) -> BaseModelEntry | None:
    """Returns the entry of that name in the settings, which needs no database, or None if there is none."""
    from app.models.catalogue import Catalogue  # noqa: PLC0415 - SQLAlchemy is slow to import

    return Catalogue(read_settings()).find(name)


def _ensure_database() -> None:
    """Makes the embedded database, which the first `toque serve` would make; another one must be there."""
    settings = read_settings()
    if not settings.database_url:
        upgrade_database(settings)
