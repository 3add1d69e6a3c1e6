"""`toque keys`: creates, lists and revokes API keys, straight in the database."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.database_session import database_session
from app.cli.output import AsJson, moment, print_fields, print_json, print_table, stderr
from app.cli.settings import read_settings
from app.core.settings import Settings

if TYPE_CHECKING:
    from app.auth.models import ApiKey, Project

app = typer.Typer(
    no_args_is_help=True, help="Manage API keys; these commands need the database, not the service."
)


@app.command()
def create(
    name: Annotated[str, typer.Argument(show_default=False, help="What the key is for.")],
    project: Annotated[
        str, typer.Option(help="Project of the key; created if it does not exist.")
    ] = "default",
    as_json: AsJson = False,
) -> None:
    """Create a key, and show it this once.

    Example: toque keys create ci --project support
    """
    from app.auth.service import create_key, create_project  # noqa: PLC0415 - SQLAlchemy is slow to import

    with database_session(read_settings()) as session:
        key, secret = create_key(session, create_project(session, project).id, name)
    if as_json:
        print_json({"id": key.id, "name": name, "project": project, "key": secret})
    else:
        print_fields({"id": key.id, "name": name, "project": project, "key": secret})
        stderr.print("Keep it now: it is not stored, and cannot be shown again.")


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List keys of all projects, oldest first.

    Example: toque keys list
    """
    from app.auth.service import list_keys as stored_keys  # noqa: PLC0415 - as above

    with database_session(read_settings()) as session:
        keys = stored_keys(session)
    if as_json:
        print_json([_plain(key, project) for key, project in keys])
        return
    rows = [
        (key.id, key.name, project.name, f"…{key.hint}", moment(key.created_at), moment(key.revoked_at))
        for key, project in keys
    ]
    print_table(("ID", "NAME", "PROJECT", "KEY", "CREATED", "REVOKED"), rows)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="KEY_ID", show_default=False)]) -> None:
    """Revoke a key, at once and for good.

    Example: toque keys revoke key_abc123
    """
    from app.auth.service import revoke_key  # noqa: PLC0415 - as above

    with database_session(read_settings()) as session:
        key = revoke_key(session, key_id)
    print_fields({"id": key.id, "name": key.name, "revoked": moment(key.revoked_at)})


def ensure_first_key(settings: Settings) -> str | None:
    """Makes TOQUE_API_KEY valid or, if it is not set, creates a first key and keeps it for client commands.

    Returns:
        The secret, if a key was created.
    """
    from app.auth import service  # noqa: PLC0415 - as above

    given = settings.api_key.get_secret_value() if settings.api_key else None
    with database_session(settings) as session:
        secret = service.ensure_first_key(session, given)
        if secret is not None:
            # Before the commit, since the secret cannot be read from the database afterwards.
            _write_private(first_key_file(settings), secret)
    return secret


def first_key_file(settings: Settings) -> Path:
    """Returns the file in which client commands on this machine find the first key."""
    return settings.data_dir / "api_key"


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")


def _plain(key: ApiKey, project: Project) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "project": project.name,
        "hint": key.hint,
        "created_at": int(key.created_at),
        "revoked_at": None if key.revoked_at is None else int(key.revoked_at),
    }
