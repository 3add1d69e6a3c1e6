"""`toque models`: lists the models, and prepares base models."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from app.cli.client import DEFAULT_BASE_URL, BaseUrl, connect
from app.cli.output import AsJson, moment, print_json, print_table
from app.cli.parent_death import bound_to_parent

app = typer.Typer(no_args_is_help=True, help="List models, and prepare base models.")


@app.command("list")
def list_models(base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """List the base models and fine-tuned models that are served.

    Example: toque models list
    """
    with connect(base_url) as client:
        models = client.models.list().data
    if as_json:
        print_json(models)
    else:
        rows = [(model.id, model.owned_by, moment(model.created)) for model in models]
        print_table(("ID", "OWNED BY", "CREATED"), rows)


@app.command()
def pull(name: Annotated[str, typer.Argument(show_default=False, help="A name in the catalogue.")]) -> None:
    """Prepare a base model on this machine.

    Example: toque models pull smollm2-135m-instruct
    """
    raise typer.Exit(pull_base_model(name))


def pull_base_model(name: str) -> int:
    """Prepares a base model in a child process, since that needs torch; returns the exit code."""
    return subprocess.call(bound_to_parent([sys.executable, "-P", "-m", "workers.base_models", "pull", name]))
