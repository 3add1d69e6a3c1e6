"""`toque db`: upgrades the database's schema, and checks that the database agrees with the storage."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.database_session import database_session
from app.cli.keys import ensure_first_key, warn_without_admin
from app.cli.output import AsJson, fail, print_fields, print_json, print_table
from app.cli.permissions import restrict_permissions
from app.cli.settings import read_settings
from app.core.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Upgrade and check the database.")


@app.callback()
def database() -> None:
    """Upgrade and check the database."""


@app.command()
def upgrade() -> None:
    """Bring the database to the newest schema, and make TOQUE_API_KEY valid if it is set. Safe to repeat.

    Example: toque db upgrade
    """
    settings = read_settings()
    print_fields({"database": upgrade_database(settings), "schema": "newest"})
    if settings.api_key:
        ensure_first_key(settings)
    else:
        with database_session(settings, read_only=True) as session:
            warn_without_admin(session)


@app.command()
def check(
    older_than: Annotated[
        float, typer.Option(min=0, metavar="HOURS", help="Leave out files younger than this.")
    ] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Compare the database with the storage: rows without files (exit code 1), and files without rows.

    A file without a row is still being stored, or was left by a crash; workers remove it after a day.

    Example: toque db check
    """
    from app.orphans import find_orphans  # noqa: PLC0415 - as above
    from app.storage import open_storage  # noqa: PLC0415 - as above

    settings = read_settings()
    storage = open_storage(settings)
    with database_session(settings, read_only=True) as session:
        orphans = find_orphans(session, storage, older_than * 3600)
    if as_json:
        print_json({"rows_without_files": orphans.missing, "files_without_rows": orphans.unnamed})
    else:
        print_fields({"rows without files": len(orphans.missing), "files without rows": len(orphans.unnamed)})
        rows = [("row without file", key) for key in orphans.missing]
        rows += [("file without row", key) for key in orphans.unnamed]
        if rows:
            print_table(("PROBLEM", "KEY"), rows)
    if orphans.missing:
        raise typer.Exit(1)


def upgrade_database(settings: Settings) -> str:
    """Creates the data folder and upgrades the schema; returns the database's URL without its password."""
    from sqlalchemy import make_url  # noqa: PLC0415 - slow to import
    from sqlalchemy.exc import ArgumentError, DatabaseError  # noqa: PLC0415 - as above

    from app.core.migrations import upgrade  # noqa: PLC0415 - as above

    restrict_permissions(settings)
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        url = make_url(settings.sqlalchemy_url).render_as_string(hide_password=True)
        upgrade(settings.sqlalchemy_url)
    except OSError as error:
        fail(f"cannot make the data folder: {error}", 2)
    except (ArgumentError, ModuleNotFoundError):
        fail(
            "TOQUE_DATABASE_URL is not a database's URL, such as postgresql+psycopg://user:password@host/name",
            2,
        )
    except DatabaseError as error:
        fail(f"cannot bring the database to the newest schema: {error.orig}")
    return url
