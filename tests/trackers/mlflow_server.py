"""A real MLflow server on SQLite, in an environment of its own that is kept between runs."""

from __future__ import annotations

import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.free_port import free_port
from tests.support.server_environment import server_environment
from tests.support.waiting import wait_until

REQUIREMENTS = Path(__file__).with_name("requirements-mlflow.txt")


def prepare() -> Path:
    """Installs the server unless it is there, and returns its folder."""
    return server_environment("mlflow", REQUIREMENTS)


@contextmanager
def run_server(folder: Path) -> Iterator[str]:
    """The server's address, while it runs."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [prepare() / "bin" / "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    with (folder / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        assert server.poll() is None, (folder / "mlflow.log").read_text()
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return True
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            return False

    try:
        wait_until(is_ready, "the MLflow server is ready", seconds=180)
        yield url
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
