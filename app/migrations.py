"""Brings the database to the newest schema."""

from __future__ import annotations

from alembic import command
from alembic.config import Config


def upgrade(url: str) -> None:
    """Applies every migration not yet applied; on a current database it changes nothing."""
    config = Config()
    config.set_main_option("script_location", "migrations:")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(config, "head")
