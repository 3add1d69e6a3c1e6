"""`toque serve` as a user runs it: the real model, trainer and vLLM, with a model trained on the way."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from app.demo.house_style import HELDOUT_FILE, TRAINING_FILE, load_questions
from tests.support.deployment import PRODUCT, Deployment, Trained, descendants, start
from tests.support.otlp_receiver import OtlpReceiver, run_receiver
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until


@pytest.fixture(scope="session")
def receiver() -> Iterator[OtlpReceiver]:
    with run_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, base_models_dir: Path, receiver: OtlpReceiver
) -> Iterator[Deployment]:
    running = start(tmp_path_factory.mktemp("deployment"), base_models_dir, **receiver.environment())
    yield running
    children = descendants(running)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(children, timeout=60)
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


@pytest.fixture(scope="session")
def few_examples(training_file: Path) -> Path:
    """The first of them, for jobs of which it does not matter what they teach."""
    path = training_file.with_name("few.jsonl")
    path.write_text("".join(training_file.read_text("utf-8").splitlines(keepends=True)[:12]), "utf-8")
    return path


@pytest.fixture(scope="session")
def trained(client: OpenAI, training_file: Path) -> Trained:
    file = client.files.create(file=training_file, purpose="fine-tune")
    # A higher learning rate than by default, so that fewer steps teach as much.
    numbers = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 2}
    job = client.fine_tuning.jobs.create(
        model=BASE_MODEL,
        training_file=file.id,
        suffix="e2e",
        seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": numbers}},
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
