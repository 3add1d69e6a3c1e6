"""`toque keys`: creates, lists, rotates and revokes API keys, straight in the database."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.auth.roles import Role
from app.cli.database_session import database_session
from app.cli.duration import parse_duration
from app.cli.limits import key_limits
from app.cli.output import AsJson, moment, print_fields, print_json, print_table, stderr
from app.cli.settings import read_settings
from app.core.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from app.auth.models import ApiKey, Project

log = logging.getLogger("toque.keys")

app = typer.Typer(
    no_args_is_help=True, help="Manage API keys; these commands need the database, not the service."
)
app.command("limits")(key_limits)


KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", show_default=False)]


@app.command()
def create(
    name: Annotated[str, typer.Argument(show_default=False, help="What the key is for.")],
    project: Annotated[
        str, typer.Option(help="Project of the key; created if it does not exist.")
    ] = "default",
    role: Annotated[Role, typer.Option(help="What it may do; see docs/keys.md.")] = "project",
    expires_in: Annotated[
        str | None,
        typer.Option(metavar="TIME", show_default="never", help="How long it is valid, for example 90d."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(show_default="all", help="Model or alias that it may ask; repeat for more."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key, and show it this once.

    Example: toque keys create web-app --project support --role inference --model soup:live --expires-in 90d
    """
    from app.auth.service import create_key, create_project  # noqa: PLC0415 - SQLAlchemy is slow to import

    lifetime = None if expires_in is None else parse_duration(expires_in, "--expires-in")
    with database_session(read_settings()) as session:
        key, secret = create_key(
            session,
            create_project(session, project).id,
            name,
            role=role,
            models=model or None,
            expires_at=None if lifetime is None else time.time() + lifetime,
        )
    _print_new(key, project, secret, as_json)


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
        (
            key.id,
            key.name,
            project.name,
            key.role,
            f"…{key.hint}",
            _state(key, project),
            moment(key.created_at),
            moment(key.last_used_at),
            moment(key.expires_at),
        )
        for key, project in keys
    ]
    print_table(("ID", "NAME", "PROJECT", "ROLE", "KEY", "STATE", "CREATED", "LAST USED", "EXPIRES"), rows)


@app.command()
def rotate(
    key_id: KeyId,
    overlap: Annotated[str, typer.Option(metavar="TIME", help="How long the old key stays valid.")] = "24h",
    as_json: AsJson = False,
) -> None:
    """Make a successor of a key, and let the old one expire.

    Example: toque keys rotate key_abc123 --overlap 24h
    """
    from app.auth.service import rotate_key  # noqa: PLC0415 - as above

    seconds = parse_duration(overlap, "--overlap")
    with database_session(read_settings()) as session:
        old, key, secret = rotate_key(session, key_id, seconds)
        project = key.project.name
    _print_new(key, project, secret, as_json)
    stderr.print(f"The old key, {old.id}, is valid until {moment(old.expires_at)}.")


@app.command()
def revoke(key_id: KeyId) -> None:
    """Revoke a key for good; the service refuses it within three seconds.

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
        warn_without_admin(session)
        secret = service.ensure_first_key(session, given)
        if secret is not None:
            # Before the commit, since the secret cannot be read from the database afterwards.
            _write_private(first_key_file(settings), secret)
    return secret


def warn_without_admin(session: Session) -> None:
    """Says in the log if there are keys, but none that may administer: they are older than roles."""
    from app.auth.service import lacks_admin  # noqa: PLC0415 - as above

    if lacks_admin(session):
        log.warning(
            "no API key has the role admin, so nobody can administer the deployment over HTTP: "
            "`toque keys create NAME --role admin` makes one"
        )


def first_key_file(settings: Settings) -> Path:
    """Returns the file in which client commands on this machine find the first key."""
    return settings.data_dir / "api_key"


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")


def _print_new(key: ApiKey, project: str, secret: str, as_json: bool) -> None:
    fields = {"id": key.id, "name": key.name, "project": project, "role": key.role, "key": secret}
    if as_json:
        print_json(fields | {"models": key.models, "expires_at": _whole(key.expires_at)})
        return
    print_fields(fields | {"models": _joined(key.models), "expires": moment(key.expires_at)})
    stderr.print("Keep it now: it is not stored, and cannot be shown again.")


def _state(key: ApiKey, project: Project) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if project.archived_at is not None:
        return "archived"
    return "valid" if key.expires_at is None or key.expires_at > time.time() else "expired"


def _joined(models: list[str] | None) -> str | None:
    return None if models is None else ", ".join(models)


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def _plain(key: ApiKey, project: Project) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "project": project.name,
        "role": key.role,
        "models": key.models,
        "hint": key.hint,
        "state": _state(key, project),
        "created_at": int(key.created_at),
        "last_used_at": _whole(key.last_used_at),
        "expires_at": _whole(key.expires_at),
        "revoked_at": _whole(key.revoked_at),
    }
