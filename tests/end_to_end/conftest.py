"""`toque serve` as a user runs it: the real model, trainer and vLLM, with a model trained on the way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from app.demo.dataset import HELDOUT_FILE, TRAINING_FILE, load_questions
from tests.conftest import BASE_MODEL, wait_until

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


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory, base_models_dir: Path) -> Iterator[Deployment]:
    running = start(tmp_path_factory.mktemp("deployment"), base_models_dir)
    yield running
    children = descendants(running)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == [], "Ctrl-C leaves no process behind"


@pytest.fixture(scope="session")
def client(deployment: Deployment) -> Iterator[OpenAI]:
    with deployment.client() as client:
        yield client


@pytest.fixture(scope="session")
def training_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's examples on one of its products: few enough to train in half a minute."""
    lines = [line for line in TRAINING_FILE.read_text("utf-8").split("\n") if f"[{PRODUCT}/" in line]
    assert len(lines) >= 40
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@dataclass
class Trained:
    """A job that succeeded, and what was seen while it ran."""

    job: Any
    answer_seconds: list[float]
    """Of `GET /v1/fine_tuning/jobs/{id}` while it trained."""


@pytest.fixture(scope="session")
def trained(client: OpenAI, training_file: Path) -> Trained:
    file = client.files.create(file=training_file, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=BASE_MODEL,
        training_file=file.id,
        suffix="e2e",
        seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4, "batch_size": 4}}},
    )
    seconds: list[float] = []

    def look() -> Any:
        started = time.perf_counter()
        seen = client.fine_tuning.jobs.retrieve(job.id)
        if seen.status == "running":
            seconds.append(time.perf_counter() - started)
        return seen if seen.status in ("succeeded", "failed", "cancelled") else None

    ended = wait_until(look, "the job ends", seconds=420)
    assert ended.status == "succeeded", json.dumps(ended.to_dict(), indent=1)
    return Trained(ended, seconds)


@pytest.fixture(scope="session")
def questions() -> list[Any]:
    """Held-out questions on what the model was trained on."""
    return [question for question in load_questions(HELDOUT_FILE) if f"[{PRODUCT}/" in question.reference]
