"""`toque models`: lists the models, prepares base models, and changes which of them the catalogue has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.client import DEFAULT_BASE_URL, BaseUrl, connect
from app.cli.database_session import database_session
from app.cli.db import upgrade_database
from app.cli.output import AsJson, moment, print_fields, print_json, print_table
from app.cli.parent_death import bound_to_parent
from app.cli.settings import read_settings
from app.core.settings import BaseModelEntry

_COMMAND = [sys.executable, "-P", "-m", "workers.base_models"]
app = typer.Typer(no_args_is_help=True, help="List models; prepare, add and remove base models.")

Name = Annotated[
    str | None, typer.Option(show_default="from its source", help="What jobs and requests call it.")
]
Context = Annotated[
    int | None,
    typer.Option(
        min=64,
        show_default="8192, or what the model and the memory allow",
        help="The most tokens of an example, and of a request with its answer.",
    ),
]
MaxRank = Annotated[
    int | None, typer.Option(min=1, show_default="32", help="The highest LoRA rank of its adapters.")
]
Quantization = Annotated[
    str | None,
    typer.Option(
        metavar="nf4", help="Train it in four bits, unless a job says otherwise.", show_default="none"
    ),
]
AlsoKnownAs = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Another name for it; may be repeated.")
]
ToolParser = Annotated[
    str | None, typer.Option(metavar="PARSER", help="vLLM's parser of its tool calls, such as hermes.")
]
ReasoningParser = Annotated[
    str | None, typer.Option(metavar="PARSER", help="vLLM's parser of its reasoning, such as qwen3.")
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A Jinja chat template to train and serve it with instead of its own."),
]
ChatTemplateKwargs = Annotated[
    str | None,
    typer.Option(
        metavar="JSON", help="""Variables for its chat template, such as '{"enable_thinking": false}'."""
    ),
]


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
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
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
            _fit(model["training"]),
            _fit(model["training_nf4"]),
            _fit(model["serving"]),
            "in the catalogue" if model["in_catalogue"] else model["command"],
        )
        for model in models
    ]
    print_table(("NAME", "WEIGHTS", "LICENCE", "TRAINING", "IN NF4", "SERVING", "GET IT"), rows)


def _fit(fit: dict[str, Any] | None) -> str | None:
    """Returns in words whether it fits here; None where it cannot be had at all."""
    if fit is None:
        return None
    needs = f"{fit['needs_bytes'] / 2**30:.1f} GiB"
    return f"fits: {needs}" if fit["fits"] else f"no: {needs} of {fit['has_bytes'] / 2**30:.1f}"


@app.command()
def pull(
    source: Annotated[
        str,
        typer.Argument(metavar="NAME|OWNER/NAME", show_default=False, help="A name, or a hub's id."),
    ],
    name: Name = None,
    context: Context = None,
    max_rank: MaxRank = None,
    quantization: Quantization = None,
    also_known_as: AlsoKnownAs = None,
    tool_parser: ToolParser = None,
    reasoning_parser: ReasoningParser = None,
    chat_template: ChatTemplate = None,
    chat_template_kwargs: ChatTemplateKwargs = None,
) -> None:
    """Prepare a base model on this machine; one that the catalogue does not have is tested and added.

    A download that breaks off goes on when the command is run again.

    Example: toque models pull qwen3-0.6b
    """
    options = _options(
        also_known_as,
        name=name,
        context=context,
        max_rank=max_rank,
        quantization=quantization,
        tool_parser=tool_parser,
        reasoning_parser=reasoning_parser,
        chat_template=chat_template,
        chat_template_kwargs=chat_template_kwargs,
    )
    if _find_given(source) is None:
        _ensure_database()
    raise typer.Exit(_run("pull", source, *options))


@app.command()
def add(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|OWNER/NAME", show_default=False, help="A folder on this machine, or a hub's id."
        ),
    ],
    name: Name = None,
    context: Context = None,
    max_rank: MaxRank = None,
    quantization: Quantization = None,
    also_known_as: AlsoKnownAs = None,
    tool_parser: ToolParser = None,
    reasoning_parser: ReasoningParser = None,
    chat_template: ChatTemplate = None,
    chat_template_kwargs: ChatTemplateKwargs = None,
) -> None:
    """Test a base model on this machine, and add it to the catalogue: it can be used at once.

    Example: toque models add /data/models/our-base --name our-base --context 4096
    """
    _ensure_database()
    options = _options(
        also_known_as,
        name=name,
        context=context,
        max_rank=max_rank,
        quantization=quantization,
        tool_parser=tool_parser,
        reasoning_parser=reasoning_parser,
        chat_template=chat_template,
        chat_template_kwargs=chat_template_kwargs,
    )
    raise typer.Exit(_run("add", source, *options))


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
    return subprocess.call(bound_to_parent([*_COMMAND, *arguments]))


def _options(also_known_as: list[str] | None, **given: str | int | Path | None) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    return options + [f"--also-known-as={other}" for other in also_known_as or ()]


def _find_given(name: str) -> BaseModelEntry | None:
    """Returns the entry of that name in the settings, which needs no database, or None if there is none."""
    from app.models.catalogue import Catalogue  # noqa: PLC0415 - SQLAlchemy is slow to import

    return Catalogue(read_settings()).find(name)


def _ensure_database() -> None:
    """Makes the embedded database, which the first `toque serve` would make; another one must be there."""
    settings = read_settings()
    if not settings.database_url:
        upgrade_database(settings)
