"""`toque api` as a process, beside an engine that answers at once, and browsers' sessions of it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2

from app.completions.models import Engine
from app.core.database import Database, database_now
from benchmarks.serving.deployment import Deployment


@dataclass(frozen=True, slots=True)
class Service:
    """A running API."""

    url: str
    key: str

    def api(self) -> httpx2.Client:
        """Returns a client of the API."""
        return httpx2.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"})

    def sign_in(self, key: str | None = None) -> str:
        """Signs in to the console; returns the cookie."""
        answer = httpx2.post(f"{self.url}/console/sign-in", data={"api_key": key or self.key})
        assert answer.status_code == 303, answer.text
        return answer.headers["set-cookie"].partition(";")[0]


@contextmanager
def running_service(deployment: Deployment, key: str) -> Generator[Service]:
    """Runs the API and the engine until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        engine_port = probe.getsockname()[1]
    engine = [sys.executable, "-m", "benchmarks.serving.stand_in_engine", str(engine_port)]
    log_path = deployment.settings.data_dir / "api.log"
    with socket.create_server(("127.0.0.1", 0)) as listener, log_path.open("wb") as log:
        command = [sys.executable, "-P", "-m", "app.cli.main", "api", "--fd", str(listener.fileno())]
        processes = [
            subprocess.Popen(engine),
            subprocess.Popen(
                command, env=deployment.environment, pass_fds=(listener.fileno(),), stdout=log, stderr=log
            ),
        ]
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        _register(deployment, f"http://127.0.0.1:{engine_port}")
        service = Service(url, key)
        with service.api() as api:
            api.get("/v1/models", timeout=60).raise_for_status()
            _await_answer(api, deployment.base.name)
        yield service
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _register(deployment: Deployment, url: str) -> None:
    database = Database(deployment.settings.sqlalchemy_url)
    with database.writer() as session:
        session.add(
            Engine(
                base_model=deployment.base.name,
                url=url,
                api_key="stand-in",
                status="ready",
                device="cpu",
                version="0",
                started_at=time.time(),
                heartbeat_at=database_now() + 86_400,
            )
        )
    database.dispose()


def _await_answer(api: httpx2.Client, model: str) -> None:
    """Waits until the gateway knows the engine."""
    body = {"model": model, "messages": [{"role": "user", "content": "Soup?"}]}
    for _ in range(100):
        answer = api.post("/v1/chat/completions", json=body)
        if answer.status_code == 200:
            return
        time.sleep(0.2)
    raise RuntimeError(answer.text)
