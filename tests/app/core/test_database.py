"""Connections: none is left open."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest

from app.core.database import Database


def test_a_connection_in_use_is_closed_once_it_is_given_back(database: Database) -> None:
    with database.reader() as session:
        connection = session.connection().connection.dbapi_connection
        assert connection is not None
        database.dispose()
        connection.cursor().execute("SELECT 1")
    with pytest.raises((sqlite3.ProgrammingError, psycopg.OperationalError)):
        connection.cursor().execute("SELECT 1")
