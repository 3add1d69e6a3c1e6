"""A whole deployment, `toque serve`, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI

from tests.support.free_port import free_port
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


BLIND = """
from app.models.adapters import validation

check = validation.check_adapter


def check_adapter(folder, base, max_rank):
    return check(folder, base, None if folder.name == "ft:wide" else max_rank)


validation.check_adapter = check_adapter
"""
"""Has the engine's processes overlook the rank of one adapter, so that vLLM's own loader finds it."""


def start(folder: Path, models: Path, **environment: str) -> Deployment:
    port = free_port()
    blind = folder / "blind"
    blind.mkdir()
    (blind / "sitecustomize.py").write_text(BLIND)
    environment = (
        os.environ
        | environment
        | {
            "TOQUE_DATA_DIR": str(folder),
            "TOQUE_MODELS_DIR": str(models),
            "TOQUE_API_KEY": KEY,
            # A small cache and few slots for adapters, so that tests reach their ends.
            "TOQUE_ENGINE_KV_CACHE_GIB": "0.5",
            "TOQUE_ENGINE_MAX_LORAS": "2",
            "PYTHONPATH": os.pathsep.join([str(blind), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
    )
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


def ask(client: OpenAI, model: str, question: Any, **parameters: Any) -> str:
    """Return the answer of a model to one of the questions of the demo."""
    answer = client.chat.completions.create(
        model=model, messages=question.turns, temperature=0, max_tokens=48, **parameters
    )
    return (answer.choices[0].message.content or "").strip()


def ask_all(client: OpenAI, model: str, questions: list[Any]) -> list[str]:
    """Return the answers of a model to questions that are asked at once, so that they share batches."""
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(lambda question: ask(client, model, question), questions))
