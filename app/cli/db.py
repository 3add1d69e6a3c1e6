"""`toque db`: the database's schema."""

from __future__ import annotations

import typer

from app.cli.configuration import read_settings
from app.cli.keys import ensure_first_key
from app.cli.output import fail, print_fields
from app.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The database.")


@app.callback()
def database() -> None:
    """The database."""


@app.command()
def upgrade() -> None:
    """Bring the database to the newest schema, and make TOQUE_API_KEY valid if set; safe to run again.

    Example: toque db upgrade
    """
    settings = read_settings()
    print_fields({"database": upgrade_database(settings), "schema": "newest"})
    if settings.api_key:
        ensure_first_key(settings)


def upgrade_database(settings: Settings) -> str:
    """Makes the data folder and the newest schema; returns the database's URL without its password."""
    from sqlalchemy import make_url  # noqa: PLC0415 - slow to import
    from sqlalchemy.exc import ArgumentError, DatabaseError  # noqa: PLC0415 - as above

    from app.migrations import upgrade  # noqa: PLC0415 - as above

    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
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
