"""A whole deployment, `toque serve`, as a process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI

from tests.support.waiting import wait_until

KEY = "sk-toque-end-to-end"
PRODUCT = "Heron"


@dataclass
class Deployment:
    """A running `toque serve`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    environment: dict[str, str]
    ready_seconds: float

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=120)

    def toque(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The client side of the command."""
        command = [sys.executable, "-m", "app.cli.main", *arguments]
        environment = self.environment | {"TOQUE_BASE_URL": f"{self.url}/v1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def start(folder: Path, models: Path) -> Deployment:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "TOQUE_DATA_DIR": str(folder),
        "TOQUE_MODELS_DIR": str(models),
        "TOQUE_API_KEY": KEY,
        "TOQUE_ENGINE_KV_CACHE_GIB": "0.5",
    }
    log = folder / "serve.log"
    started = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli.main", "serve", "--port", str(port)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5):
                return True
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            return False

    wait_until(ready, "toque serve is ready", seconds=240)
    return Deployment(url, process, log, environment, time.monotonic() - started)


def descendants(deployment: Deployment) -> list[psutil.Process]:
    return psutil.Process(deployment.process.pid).children(recursive=True)


@dataclass
class Trained:
    """A job that succeeded, and what was seen while it ran."""

    job: Any
    answer_seconds: list[float]
    """Of `GET /v1/fine_tuning/jobs/{id}` while it trained."""
