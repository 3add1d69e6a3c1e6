"""Migrations run on both databases and give exactly the schema that the models describe."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import inspect

from app.database import Base, Database
from app.migrations import upgrade


def configuration(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", "migrations:")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def test_the_models_and_the_migrations_agree(database_url: str) -> None:
    command.check(configuration(database_url))
    upgrade(database_url)  # again: nothing to do


def test_down_and_up_again(database_url: str) -> None:
    command.downgrade(configuration(database_url), "base")
    database = Database(database_url)
    assert set(inspect(database.engine).get_table_names()) <= {"alembic_version"}
    upgrade(database_url)
    assert set(inspect(database.engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
    database.dispose()
