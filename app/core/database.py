"""The database: engine, sessions, declarative base, and the database's own clock.

Short work takes a `Session`, which it neither commits nor closes. Long work (it reads a file, starts a child
process or copies bytes) takes a `Database` and opens its own short transactions around the long part.
See docs/adr/0010-one-way-to-a-transaction.md.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from psycopg.errors import UndefinedColumn, UndefinedTable
from sqlalchemy import JSON, Engine, create_engine, event, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import Double

DATABASE_AWAY = (OperationalError, InternalError, PoolTimeoutError)
"""The exceptions that mean that the database cannot be reached now."""
KEPT_AT_ONCE = 10
"""Sessions for reading, and as many for writing, that may be kept while a process waits for something else
than the database. The pool has more: who takes a connection only while it runs finds one in time."""
_CONNECTIONS, _MORE_CONNECTIONS, _CONNECTION_SECONDS = 10, 20, 10
"""Kept open in a process; opened when these are in use; and how long is waited for one of them."""
_IDLE_TRANSACTION_SECONDS = 30
_BUSY_MILLISECONDS = 30_000
"""How long a statement waits for SQLite's lock."""
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


class Base(DeclarativeBase):
    """The base of every table; JSON columns hold plain dicts and lists."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON,
        list[dict[str, Any]]: JSON,
        list[str]: JSON,
        float: Double,
    }


class database_now(GenericFunction[float]):  # noqa: N801 - reads as the SQL function it is
    """Seconds since the epoch by the database's clock, the only clock that leases are measured by."""

    type: Double[float] = Double()
    inherit_cache = True
    name = "database_now"


@compiles(database_now, "sqlite")
def _sqlite_now(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(database_now, "postgresql")
def _postgresql_now(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def new_id(prefix: str) -> str:
    """Return an unguessable id: the prefix and 24 characters, time first so that indexes stay compact."""
    return prefix + _digits(int(time.time() * 1000), 8) + _digits(secrets.randbelow(36**16), 16)


def _digits(number: int, count: int) -> str:
    """Return the last `count` digits of the number in base 36."""
    digits: list[str] = []
    for _ in range(count):
        number, digit = divmod(number, 36)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


class Database:
    """The connections of one process, as `reader` and `writer` sessions that last one transaction each.

    On SQLite a writer takes the write lock when it begins: a deferred transaction that reads first
    cannot become a writer once another has written (SQLITE_BUSY at once, whatever the timeout).
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _connect(url)
        self._read = sessionmaker(self.engine, expire_on_commit=False)
        immediate = self.engine.execution_options(sqlite_begin_immediate=True)
        self._write = sessionmaker(immediate, expire_on_commit=False)

    def reader(self) -> AbstractContextManager[Session]:
        """Open a session whose changes are not kept."""
        return self._read()

    def writer(self) -> AbstractContextManager[Session]:
        """Open a session that commits at the end of the `with` block, or rolls back if the block raises."""
        return self._write.begin()

    def lock_is_free(self, seconds: float) -> bool:
        """Return whether SQLite's lock on writing can be had within so long; PostgreSQL has no such lock.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database cannot be reached.
            sqlite3.Error: its file is damaged.
        """
        with self.engine.connect() as connection:
            if connection.dialect.name != "sqlite":
                return True
            driver: Any = connection.connection.driver_connection
            try:
                driver.execute(f"PRAGMA busy_timeout={seconds * 1000:.0f}")
                driver.execute("BEGIN IMMEDIATE")
                driver.rollback()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                return False
            finally:
                driver.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")
        return True

    def scrub(self) -> bool:
        """Rewrite SQLite's file without what deleted rows have left in it; return False if it is busy.

        PostgreSQL does so by itself (https://www.postgresql.org/docs/current/routine-vacuuming.html).
        """
        with self.engine.connect() as connection:
            if connection.dialect.name != "sqlite":
                return True
            driver: Any = connection.connection.driver_connection
            try:
                driver.execute("VACUUM")
                is_busy, *_ = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                return False
        return not is_busy

    def dispose(self) -> None:
        """Close the pool; a connection that a thread still uses is closed once it is given back."""
        event.listen(self.engine, "checkin", _close_returned)
        self.engine.dispose()


def is_damaged(error: BaseException | None) -> bool:
    """Return whether the driver's error says that the file of SQLite's database is damaged."""
    codes = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return isinstance(error, sqlite3.DatabaseError) and error.sqlite_errorcode & 0xFF in codes


def lacks_table(error: BaseException | None) -> bool:
    """Return whether the driver's error says that there is no such table or column."""
    if isinstance(error, sqlite3.OperationalError):
        return str(error).startswith(("no such table", "no such column"))
    return isinstance(error, UndefinedTable | UndefinedColumn)


def advisory_lock(session: Session, name: str, *, shared: bool = False) -> None:
    """Wait until no other transaction holds the lock of this name, and hold it until this transaction ends.

    Transactions that take it as `shared` do not wait for each other.

    SQLite has one writer at a time anyway, so there the writer's transaction merely begins.
    """
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        lock = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
        take = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
        session.execute(select(take(lock)))


def insert_into(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that can be given an ON CONFLICT, in the dialect of the session's database."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    return insert(table)


def _close_returned(_connection: Any, record: Any) -> None:
    record.close()


def _bound_idle_transactions(connection: Any, _record: Any) -> None:
    """End idle transactions, so that a process that is frozen in one does not hold its locks for ever."""
    connection.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_TRANSACTION_SECONDS}s'")
    connection.commit()


def _connect(url: str) -> Engine:
    parsed = make_url(url)
    pool = {
        "pool_size": _CONNECTIONS,
        "max_overflow": _MORE_CONNECTIONS,
        "pool_timeout": _CONNECTION_SECONDS,
    }
    if parsed.get_backend_name() != "sqlite":
        server = create_engine(parsed, pool_pre_ping=True, **pool)
        event.listen(server, "connect", _bound_idle_transactions)
        return server
    engine = create_engine(parsed, connect_args={"timeout": 30, "check_same_thread": False}, **pool)

    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late; see on_begin
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
            f"busy_timeout={_BUSY_MILLISECONDS}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    def on_begin(connection: Any) -> None:
        immediate = connection.get_execution_options().get("sqlite_begin_immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
    return engine
