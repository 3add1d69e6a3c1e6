"""PostgreSQL's notifications, which wake a process that would otherwise look again and again.

https://www.postgresql.org/docs/current/sql-notify.html
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psycopg
from psycopg import sql
from sqlalchemy import func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database, new_id

log = logging.getLogger("toque.notifications")

_TURN_SECONDS = 1.0
_RETRY_SECONDS = 10.0
_TEST = "test_"


class Notifications:
    """Listens on a channel, with a connection and a thread of its own, while a `with` block runs.

    Notifications are a help and no more: who waits for one must also look now and then. There are none on
    SQLite, and none arrive through a pool that gives a server's connection to each transaction, such as
    pgbouncer's; `url` then is the server's own address.
    """

    def __init__(
        self, database: Database, channel: str, on_notice: Callable[[str], None], *, url: str = ""
    ) -> None:
        self._database = database
        self._channel = channel
        self._on_notice = on_notice
        parsed = make_url(url or database.url)
        self._is_postgresql = parsed.get_backend_name() == "postgresql"
        self._address = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notifications", daemon=True)
        self.arrive = False
        """Whether notifications get here, which one that was sent as a test has shown."""

    def __enter__(self) -> Notifications:
        if self._is_postgresql:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                with psycopg.connect(self._address, autocommit=True) as connection:
                    self._listen(connection)
            except (psycopg.Error, SQLAlchemyError) as error:
                log.info("no notifications from the database: %s", type(error).__name__)
            self.arrive = False
            self._ended.wait(_RETRY_SECONDS)

    def _listen(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
        self._notify(test := new_id(_TEST))
        while not self._ended.is_set():
            for notice in connection.notifies(timeout=_TURN_SECONDS):
                if notice.payload == test:
                    self.arrive = True
                elif not notice.payload.startswith(_TEST):
                    self._on_notice(notice.payload)

    def _notify(self, payload: str) -> None:
        """Notifies all that listen, over another connection, as others do."""
        with self._database.writer() as session:
            session.execute(select(func.pg_notify(self._channel, payload)))
