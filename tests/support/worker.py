"""A training worker process, and the jobs that it works on."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI
from safetensors.torch import load_file

from app.core.database import Database
from app.core.settings import Settings
from app.models.adapters.models import Adapter
from app.storage import open_storage
from tests.support import forked_worker
from tests.support.examples import lines_of, preference_pairs
from tests.support.tiny_model import TINY
from tests.support.training_files import training_bytes
from tests.support.waiting import wait_until

COMMAND = [sys.executable, "-m", "workers.training.worker"]
"""Starts a worker as it is started in production, with nothing imported before."""


class ForkedWorker:
    """A worker process that is forked, with as much of `subprocess.Popen` as tests use."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._process = _server().Process(target=forked_worker.run, args=(environment, str(log)))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def _server() -> ForkServerContext:
    """A process that has imported what workers and trainers need, to fork from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([forked_worker.__name__])
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")  # which torch reads once, when it is imported
        environment.setenv("HF_HUB_OFFLINE", "1")
        forkserver.ensure_running()
    return context


WorkerProcess = subprocess.Popen[bytes] | ForkedWorker


@contextmanager
def run_worker(
    settings: Settings,
    tmp_path: Path,
    command: Sequence[str] | None = None,
    hold_at: int | None = None,
    hold_point: str = "trainer.step",
    hold_rank: int = 0,
    first_jobs: int | None = None,
    **environment: str,
) -> Iterator[WorkerProcess]:
    """A worker process, forked unless there is a command for it; its log goes to worker.log.

    Its first trainer to come to `hold_point` for the `hold_at`-th time makes the file `held`, and waits there
    until it is asked to stop or something is written into the file. It begins when it has `first_jobs` jobs.
    """
    environment = (
        os.environ
        | environment
        | {
            "TOQUE_DATA_DIR": str(settings.data_dir),
            "TOQUE_DATABASE_URL": settings.database_url,
            "TOQUE_STORAGE_DIR": str(settings.storage_root),
            "TOQUE_BASE_MODELS": f"[{settings.base_models[0].model_dump_json()}]",
            "TOQUE_HEARTBEAT_SECONDS": "0.2",
            "TOQUE_LEASE_SECONDS": str(settings.lease_seconds),
            "TOQUE_RETRY_SECONDS": str(settings.retry_seconds),
            "TOQUE_STORAGE_ROOM_BYTES": str(settings.storage_room_bytes),
            "TOQUE_POLL_SECONDS": "0.1",
            "TOQUE_TRAINING_THREADS": "1",
        }
    )
    if hold_at is not None:
        environment[forked_worker.HOLD_AT] = f"{hold_rank}:{hold_point}:{hold_at}:{tmp_path / 'held'}"
    if first_jobs is not None:
        environment[forked_worker.FIRST_JOBS] = f"{first_jobs}:{tmp_path / 'begun'}"
    log = tmp_path / "worker.log"
    log.touch()
    if command is None:
        process = ForkedWorker(environment, log)
    else:
        with log.open("ab") as stderr:
            process = subprocess.Popen(command, env=environment, stderr=stderr)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            code = process.wait(timeout=120)
            crashing = "TOQUE_CRASH_AT" in environment  # it may be about to kill itself
            assert code == 0 or (crashing and code == -signal.SIGKILL), log.read_text()


def trainer_of(worker: WorkerProcess) -> psutil.Process:
    """The trainer, once it has started."""

    def find() -> psutil.Process | None:
        children = psutil.Process(worker.pid).children()
        return next((child for child in children if _is_trainer(child)), None)

    return wait_until(find, "the trainer starts")


def kill_with_trainer(worker: WorkerProcess) -> None:
    """Kill both without notice, as when their machine vanishes."""
    processes = [psutil.Process(worker.pid), trainer_of(worker)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes)


def _is_trainer(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # it has just ended
        return process.name() == forked_worker.TRAINER_NAME or "workers.training.trainer" in process.cmdline()
    return False


def create(client: OpenAI, content: bytes | None = None, method: str = "supervised", **parameters: Any):
    content = content or (lines_of(preference_pairs(24)) if method == "dpo" else training_bytes(24))
    file = client.files.create(file=("train.jsonl", content), purpose="fine-tune")
    hyperparameters = {"n_epochs": 2, "batch_size": 4} | parameters.pop("hyperparameters", {})
    parameters = {"model": TINY, "seed": 1} | parameters
    settings: Any = {"type": method, method: {"hyperparameters": hyperparameters}}
    return client.fine_tuning.jobs.create(training_file=file.id, method=settings, **parameters)


def ended(client: OpenAI, job_id: str):
    def look():
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    return wait_until(look, f"{job_id} ends")


def weights(database: Database, settings: Settings, name: str) -> dict[str, Any]:
    with database.reader() as session:
        key = session.get_one(Adapter, name).storage_key
    with open_storage(settings).local(key) as folder:
        return load_file(folder / "adapter_model.safetensors")


def check_record(client: OpenAI, job: Any, steps: int = 12) -> list[str]:
    """Every step once, in order, in log and result file; returns the losses as text."""
    events = [
        event for event in client.fine_tuning.jobs.list_events(job.id, limit=1000) if event.type == "metrics"
    ]
    assert [event.data["step"] for event in events][::-1] == list(range(1, steps + 1))
    rows = list(csv.DictReader(client.files.content(job.result_files[0]).text.splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(1, steps + 1))
    return [row["train_loss"] for row in rows]


def steps_of(client: OpenAI, job_id: str) -> int:
    events = client.fine_tuning.jobs.list_events(job_id, limit=1000)
    return max((event.data["step"] for event in events if event.type == "metrics"), default=0)
