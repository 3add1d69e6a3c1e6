"""pgbouncer in transaction mode, as Debian has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import make_url

from tests.support.waiting import listens, wait_until

PORT = 6432


@contextmanager
def run_pgbouncer(server: str) -> Iterator[str]:
    """Serves all databases of a server, whose URL has `{}` for the database; yields the same kind of URL."""
    folder = Path(tempfile.mkdtemp(prefix="toque-pgbouncer-", dir="/tmp"))
    folder.chmod(0o777)
    host = str(make_url(server).query["host"])
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"""
[databases]
* = host={host} user=postgres
[pgbouncer]
auth_type = any
listen_addr =
listen_port = {PORT}
unix_socket_dir = {folder}
pool_mode = transaction
default_pool_size = 5
max_client_conn = 1000
"""
    )
    # pgbouncer does not run as root; the server's own user reaches its socket.
    as_whom = [f"--user={Path(host).owner()}"] if os.getuid() == 0 else []
    command = ["/usr/sbin/pgbouncer", "--quiet", *as_whom, str(settings)]
    process = subprocess.Popen(command)
    try:
        wait_until(lambda: listens(f"{folder}/.s.PGSQL.{PORT}"), "pgbouncer listens")
        yield f"postgresql+psycopg://postgres@/{{}}?host={folder}&port={PORT}"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)
