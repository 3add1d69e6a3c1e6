"""A database session for the commands that need no running service."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.cli.output import fail
from app.core.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from app.core.database import Database


@contextmanager
def database_session(settings: Settings, *, read_only: bool = False) -> Generator[Session]:
    """Yields a session in one transaction; an error ends the command with one line."""
    with (
        opened_database(settings) as database,
        database.reader() if read_only else database.writer() as session,
    ):
        yield session


@contextmanager
def opened_database(settings: Settings) -> Generator[Database]:
    """Yields the database, for work that takes more than one transaction; errors as `database_session`."""
    from sqlalchemy.exc import DatabaseError  # noqa: PLC0415 - SQLAlchemy is slow to import

    from app.audit.recorder import acting_as, this_user  # noqa: PLC0415 - as above
    from app.core.database import Database  # noqa: PLC0415 - as above
    from app.core.errors import ToqueError  # noqa: PLC0415 - as above

    database = Database(settings.sqlalchemy_url)
    try:
        with acting_as(this_user()):
            yield database
    except ToqueError as error:
        fail(error.body.message)
    except DatabaseError as error:
        fail(f"the database cannot be used ({error.orig}); is it there, and did `toque db upgrade` run?")
    finally:
        database.dispose()
