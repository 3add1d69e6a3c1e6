"""The API as a process of its own, to be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from openai import OpenAI

from app.core.settings import Settings
from tests.support.service import API_KEY
from tests.support.waiting import listens, wait_until


@contextmanager
def api_process(settings: Settings) -> Iterator[tuple[subprocess.Popen[bytes], OpenAI]]:
    """`toque api` as a process, to be killed, and a client of it."""
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        path = str(Path(folder) / "api.sock")
        environment = os.environ | {
            "TOQUE_DATA_DIR": str(settings.data_dir),
            "TOQUE_DATABASE_URL": settings.database_url,
            "TOQUE_MODELS_DIR": str(settings.models_dir),
            "TOQUE_HEARTBEAT_SECONDS": str(settings.heartbeat_seconds),
            "TOQUE_POLL_SECONDS": "0.1",
            "TOQUE_WEBHOOK_PRIVATE_NETWORKS": json.dumps([*map(str, settings.webhook_private_networks)]),
        }
        command = [sys.executable, "-m", "uvicorn", "app.api.main:create_app", "--factory", "--uds", path]
        process = subprocess.Popen([*command, "--log-level", "critical"], env=environment)
        transport = httpx2.HTTPTransport(uds=path)
        http = httpx2.Client(transport=transport)
        try:
            wait_until(lambda: listens(path), "the API starts", seconds=90)
            yield (
                process,
                OpenAI(base_url="http://api/v1", api_key=API_KEY, max_retries=0, http_client=http),
            )
        finally:
            http.close()
            process.kill()
            process.wait()
