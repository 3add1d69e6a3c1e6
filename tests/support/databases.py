"""Statements and migrations on a whole database."""

from __future__ import annotations

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import MetaData, create_engine


def execute_sql(url: str, statement: str) -> None:
    """Runs a statement that cannot be in a transaction."""
    with psycopg.connect(url.format("postgres").replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement)  # pyright: ignore[reportArgumentType]


def configuration(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", "migrations:")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def downgrade(url: str, revision: str) -> None:
    command.downgrade(configuration(url), revision)


def remove_tables(url: str) -> None:
    """Leaves an empty database, as `downgrade` to `base` does in much longer."""
    engine, found = create_engine(url), MetaData()
    found.reflect(engine)
    with engine.begin() as connection:
        found.drop_all(connection)
    engine.dispose()
