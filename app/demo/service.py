"""Runs `toque serve` as a child process with a data folder and a port of its own."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.core.child_environment import DOWNLOADS, child_environment
from app.core.settings import Settings

if TYPE_CHECKING:
    from openai import OpenAI


@dataclass(frozen=True, slots=True)
class ServiceProcess:
    """A running `toque serve`."""

    process: subprocess.Popen[bytes]
    address: str
    api_key: str
    log: Path

    def client(self) -> OpenAI:
        """Returns an OpenAI client for the service."""
        from openai import OpenAI  # noqa: PLC0415 - takes a second to import

        return OpenAI(base_url=f"{self.address}/v1", api_key=self.api_key)

    def await_ready(self, waiting: Callable[[str], object]) -> None:
        """Waits until the service is ready; calls `waiting` with what is missing.

        Raises:
            RuntimeError: the service ended; the message has the end of its log.
        """
        while self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.address}/health/ready", timeout=5):  # noqa: S310 - http
                    return
            except urllib.error.HTTPError as error:
                with error:
                    waiting(json.load(error)["error"]["message"])
            except OSError:
                waiting("not listening yet")
            time.sleep(0.5)
        last_lines = self.log.read_text("utf-8", "replace").rstrip().split("\n")[-15:]
        raise RuntimeError("toque serve ended; the last lines of its log:\n" + "\n".join(last_lines))


@contextmanager
def running_service(settings: Settings, folder: Path) -> Generator[ServiceProcess]:
    """Runs a service until the block ends, on a free port, with everything but base models in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    key, port, log = "sk-toque-" + secrets.token_hex(16), _free_port(), folder / "serve.log"
    environment = child_environment(DOWNLOADS, has_settings=True) | {
        "TOQUE_API_KEY": key,
        "TOQUE_DATA_DIR": str(folder),
        "TOQUE_DATABASE_URL": "",
        "TOQUE_STORAGE_DIR": "",
        "TOQUE_MODELS_DIR": str(settings.models_root),  # prepared once for all
        "TOQUE_HOST": "127.0.0.1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.cli.main", "serve", "--port", str(port)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield ServiceProcess(process, f"http://127.0.0.1:{port}", key, log)
    finally:
        process.terminate()  # SIGINT may be ignored, as under nohup
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
