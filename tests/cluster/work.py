"""What these tests give a deployment to do: jobs for stand-in trainers, and requests."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai

from app.models.adapters.models import Adapter
from app.storage import open_storage
from benchmarks.stand_in_trainer import WEIGHTS_FILE, untrained
from tests.cluster.deployment import Deployment
from tests.support.service import BASE_MODEL
from tests.support.training_files import training_bytes
from tests.support.waiting import wait_until


def seconds(limit: float) -> float:
    """A limit for an idle machine; a busy one has as much more time as its load says."""
    return limit * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def create_job(deployment: Deployment, file: str, epochs: int = 1, **hyperparameters: int) -> str:
    """A job of ten steps an epoch, each of some 40 ms."""
    method: Any = {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 4, **hyperparameters}},
    }
    with deployment.client() as client:
        return client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=file, method=method, seed=7).id


def upload(deployment: Deployment) -> str:
    with deployment.client() as client:
        return client.files.create(file=("train.jsonl", training_bytes(40)), purpose="fine-tune").id


def succeed(deployment: Deployment, jobs: list[str], limit: float) -> None:
    def ended() -> bool:
        statuses = [deployment.job(job).status for job in jobs]
        assert "failed" not in statuses, [deployment.job(job).error for job in jobs]
        return all(status == "succeeded" for status in statuses)

    wait_until(ended, "the jobs succeed", seconds=limit)


def weights(deployment: Deployment, job: str) -> bytes:
    name = deployment.job(job).fine_tuned_model
    with deployment.database.reader() as session:
        key = session.get_one(Adapter, name).storage_key
    with open_storage(deployment.settings).local(key) as folder:
        return (folder / WEIGHTS_FILE).read_bytes()


def trained(steps: int) -> bytes:
    """What an uninterrupted job ends with."""
    at = untrained(7)
    for _ in range(steps):
        at = at.next()
    return at.weights


def ask(deployment: Deployment) -> str:
    with deployment.client() as client:
        answer = client.chat.completions.create(
            model=BASE_MODEL, messages=[{"role": "user", "content": "Soup?"}], timeout=120
        )
        return answer.choices[0].message.content or ""


@contextmanager
def asking(deployment: Deployment, callers: int) -> Iterator[list[str]]:
    """So many callers ask again and again until the block ends; yields what went wrong."""
    ended, failures, answers = threading.Event(), list[str](), list[str]()

    def call() -> None:
        with deployment.client() as client:
            while not ended.is_set():
                try:
                    client.chat.completions.create(
                        model=BASE_MODEL, messages=[{"role": "user", "content": "Soup?"}], timeout=120
                    )
                    answers.append("")
                except openai.OpenAIError as error:
                    failures.append(f"{time.time():.1f}: {error} {error.__cause__!r}")

    with ThreadPoolExecutor(callers) as pool:
        for _ in range(callers):
            pool.submit(call)
        try:
            yield failures
        finally:
            ended.set()
    assert answers
