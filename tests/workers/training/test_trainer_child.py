"""The worker's side of its trainer: nobody waits for ever, and no job is given to a trainer that dies."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy.exc import IntegrityError

from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning.claim import claim_next
from app.storage import open_storage
from tests.support.tiny_model import TINY
from tests.support.worker import create
from workers.training.attempt import Attempt
from workers.training.child import Death, TrainerChild
from workers.training.protocol import Progress, Stopped, TrainingSpec
from workers.training.reporter import JobReporter

NONSENSE = "print('hello', flush=True); input(); input()"
OBEDIENT = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    with open(sys.argv[1], "a") as requests:
        print(request["type"], file=requests)
    said = {"type": "noted", "message": "It trains."}
    if request["type"] == "stop" or request["seed"] == 42:
        said = {"type": "stopped", "step": 3}
    print(json.dumps(said | {"attempt": request["attempt"]}), flush=True)
"""
"""Stops a job when it is told to, or at once if the seed is 42."""


@contextmanager
def running(script: str, *arguments: str, most_jobs: int = 1) -> Generator[TrainerChild]:
    child = TrainerChild((sys.executable, "-c", script, *arguments), threads=1, most_jobs=most_jobs)
    yield child
    child.close()


def all_of(messages: Generator[Progress | Death]) -> list[Progress | Death]:
    """Return all messages; fail if they do not end."""
    heard: SimpleQueue[list[Progress | Death]] = SimpleQueue()
    threading.Thread(target=lambda: heard.put(list(messages)), daemon=True).start()
    return heard.get(timeout=30)


def test_a_trainer_that_says_what_is_no_message_is_killed(spec: TrainingSpec) -> None:
    with running(NONSENSE) as child:
        [death] = all_of(child.train(spec))
    assert isinstance(death, Death)
    assert death.reason == "signal SIGKILL"


def test_a_trainer_that_was_killed_gets_no_other_job(spec: TrainingSpec, tmp_path: Path) -> None:
    with running(OBEDIENT, str(tmp_path / "requests")) as child:
        for _ in range(3):
            assert isinstance(next(child.train(spec)), Stopped)
            child.kill()


@pytest.mark.one_database
def test_a_job_whose_progress_cannot_be_recorded_is_trained_no_further(
    client: OpenAI, settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer goes on, as it may have other jobs."""

    def refuse(*_: Any) -> None:
        raise IntegrityError("INSERT", {}, ValueError("the database does not take it"))

    monkeypatch.setattr(JobReporter, "note", refuse)
    create(client)
    with database.writer() as session:
        job = claim_next(session, "worker_1", [TINY], 60.0)
    assert job is not None
    requests = tmp_path / "requests"
    with running(OBEDIENT, str(requests), most_jobs=2) as child:
        Attempt(job, settings, database, open_storage(settings), child, None, threading.Event()).run()
        assert requests.read_text().split() == ["train", "stop"]
    assert client.fine_tuning.jobs.retrieve(job.id).status == "running", "until its lease has expired"
