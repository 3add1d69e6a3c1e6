"""Migrations: upgrading the database to the newest schema, and checking whether it is there."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from sqlalchemy import Engine, inspect, text

OUTDATED = "the database's schema is older than this version: run `toque db upgrade`"


def upgrade(url: str) -> None:
    """Apply every migration that has not been applied yet; a current database stays as it is."""
    from alembic import command  # noqa: PLC0415 - 11 MB that the API need not hold
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config()
    config.set_main_option("script_location", "migrations:")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(config, "head")


def is_outdated(engine: Engine) -> bool:
    """Return whether migrations of this version are missing. The schema of a newer version is not outdated.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database cannot be read.
    """
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return True
        current = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return current is None or current in _older_revisions()


def is_newest(revision: str) -> bool:
    """Return whether the revision is the one that this version works with."""
    return revision == revisions()[-1]


def is_known(revision: str) -> bool:
    """Return whether the revision is one of this version's, and so the schema can be upgraded from it."""
    return revision in revisions()


def _older_revisions() -> frozenset[str]:
    """Return all revisions but the newest."""
    return frozenset(revisions()[:-1])


@cache
def revisions() -> tuple[str, ...]:
    """Return all revisions, oldest first. Their files are named after them, in order."""
    names = (file.name for file in files("migrations").joinpath("versions").iterdir())
    return tuple(
        sorted(name.partition("_")[0] for name in names if name.endswith(".py") and name[0].isdigit())
    )
