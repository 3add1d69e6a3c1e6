"""Copies of the database, made and put back by the database's own tools while the service runs."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, func, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.orm import Session

from app.backup.errors import BackupError
from app.core.database import Database


@contextmanager
def copied_database(database: Database, target: Path) -> Generator[Session]:
    """Copy the database to a new file, and open a session that reads exactly what is in the copy.

    Raises:
        BackupError: a tool is missing, or failed.
        sqlalchemy.exc.SQLAlchemyError, sqlite3.Error: the database cannot be read.
    """
    if database.engine.dialect.name == "sqlite":
        _copy_sqlite(database, target)
        copy = _open_read_only(target)
        try:
            with Session(copy) as session:
                yield session
        finally:
            copy.dispose()
        return
    with database.reader() as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))  # pg_dump may take long
        snapshot = session.scalar(select(func.pg_export_snapshot()))
        _run(
            make_url(database.url),
            "pg_dump",
            "--format=custom",
            "--no-owner",
            "--no-privileges",
            f"--snapshot={snapshot}",
            f"--file={target}",
        )
        yield session


def require_no_database(url: str) -> None:
    """Check that there is nothing where a database is to be restored.

    Raises:
        BackupError: there is a database, or the server cannot be reached.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        path = sqlite_path(parsed)
        # SQLite would apply the journal of another database to the restored one.
        for suffix in ("", "-wal", "-shm", "-journal"):
            if (found := path.with_name(path.name + suffix)).exists():
                raise BackupError(f"there is a database already: move {found} away before you restore")
        return
    database = Database(url)
    try:
        if tables := inspect(database.engine).get_table_names():
            shown = ", ".join(sorted(tables)[:3])
            raise BackupError(f"the database is not empty (it has {shown}): restore into a new one")
    finally:
        database.dispose()


def restore_postgresql(url: str, dump: Path) -> None:
    """Put a dump into an empty database, in one transaction.

    Raises:
        BackupError: the tool is missing, or failed; nothing was restored.
    """
    _run(
        make_url(url),
        "pg_restore",
        "--single-transaction",
        "--exit-on-error",
        "--no-owner",
        "--no-privileges",
        str(dump),
    )


def sqlite_path(url: URL) -> Path:
    """Return the file of a SQLite database.

    Raises:
        BackupError: it is in memory only.
    """
    if not url.database or url.database == ":memory:":
        raise BackupError("a database in memory can be neither backed up nor restored")
    return Path(url.database)


def _copy_sqlite(database: Database, target: Path) -> None:
    """Write a compact copy, as of one moment; writers go on meanwhile (https://www.sqlite.org/lang_vacuum.html)."""
    if not sqlite_path(make_url(database.url)).exists():
        raise BackupError(f"there is no database at {sqlite_path(make_url(database.url))}")
    with database.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        try:
            driver.execute("VACUUM INTO ?", (str(target),))
        except sqlite3.OperationalError as error:
            raise BackupError(f"the database cannot be copied: {error}") from error
    with target.open("rb+") as file:  # VACUUM INTO leaves this to its caller
        os.fsync(file.fileno())


def _open_read_only(path: Path) -> Engine:
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True))

    def stay_read_only(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA query_only=ON")

    event.listen(engine, "connect", stay_read_only)
    return engine


def _run(url: URL, tool: str, *options: str) -> None:
    """Run one of PostgreSQL's client programs on a database; its password is in no argument."""
    program = shutil.which(tool)
    if program is None:
        raise BackupError(
            f"{tool} is not on the PATH: install PostgreSQL's client programs, as new as the server or newer"
        )
    environment = dict(os.environ)
    if (password := url.password or url.query.get("password")) is not None:
        environment["PGPASSWORD"] = str(password)
    # `URL.set` would keep the password, as None means no change to it.
    plain = url.difference_update_query(["password", "sslpassword"])._replace(
        drivername="postgresql", password=None
    )
    command = [program, "--no-password", f"--dbname={plain.render_as_string(hide_password=False)}", *options]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise BackupError(f"{tool} failed: {ran.stderr.strip() or f'it ended with {ran.returncode}'}")
