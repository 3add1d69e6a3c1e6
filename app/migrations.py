"""Brings the database to the newest schema, and tells whether it is there."""

from __future__ import annotations

from functools import cache

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

OUTDATED = "the database's schema is older than this version: run `toque db upgrade`"


def upgrade(url: str) -> None:
    """Applies every migration not yet applied; on a current database it changes nothing."""
    config = _config()
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(config, "head")


def is_outdated(engine: Engine) -> bool:
    """Whether migrations of this version are missing; a schema of a newer version's is none of ours to judge.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database cannot be read.
    """
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    return current is None or current in _older_revisions()


@cache
def _older_revisions() -> frozenset[str]:
    scripts = ScriptDirectory.from_config(_config())
    return frozenset(script.revision for script in scripts.walk_revisions() if not script.is_head)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "migrations:")
    return config
