"""The command `toque`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from app.cli import (
    adapters,
    aliases,
    audit,
    backup,
    batches,
    chat,
    compare,
    db,
    demo,
    engines,
    files,
    fleet,
    jobs,
    keys,
    models,
    processes,
    projects,
    promote,
    serve,
    storage,
    webhooks,
    workers,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they hold API keys
    help="Fine-tune models on your own examples, and serve them, on your own machines.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"toque {version('toque')}")
        raise typer.Exit


@app.callback()
def toque(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Fine-tune models on your own examples, and serve them, on your own machines."""


app.command()(serve.serve)
app.command()(demo.demo)
app.add_typer(files.app, name="files")
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(adapters.app, name="adapters")
app.add_typer(aliases.app, name="aliases")
app.add_typer(compare.app, name="compare")
app.add_typer(batches.app, name="batches")
app.add_typer(webhooks.app, name="webhooks")
app.command()(promote.promote)
app.command()(chat.chat)
app.add_typer(projects.app, name="projects")
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.add_typer(db.app, name="db")
app.add_typer(storage.app, name="storage")
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(workers.workers)
app.command()(engines.engines)

_PARTS = "Parts of `toque serve`"
app.command(rich_help_panel=_PARTS)(serve.api)
app.command(rich_help_panel=_PARTS)(processes.worker)
app.command(rich_help_panel=_PARTS)(processes.engine)
app.command(rich_help_panel=_PARTS)(fleet.fleet)
app.command(rich_help_panel=_PARTS)(fleet.drain)

if __name__ == "__main__":
    app()
