"""What trackio keeps in its folder."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai import OpenAI

from app.core.database import Database
from tests.support.waiting import wait_until
from tests.support.worker import ended, steps_of
from tests.trackers.conftest import create_job, logged
from tests.trackers.test_mlflow import sent_step, sent_to_the_end
from workers.tracking import trackio_run
from workers.tracking.tracker import RunDetails

pytestmark = pytest.mark.one_database
TRACKER = "trackio"
READ = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
print("LOGS", json.dumps(SQLiteStorage.get_logs("toque", sys.argv[1])))
"""


def read_steps(folder: Path, job_id: str) -> list[dict[str, Any]]:
    """In a process of its own, as trackio reads its folder's name once."""
    command = [sys.executable, "-c", READ, job_id]
    done = subprocess.run(
        command, env={"TRACKIO_DIR": str(folder)}, capture_output=True, text=True, check=True
    )
    return msgspec.json.decode(done.stdout.partition("LOGS ")[2])


def test_a_step_that_trackio_drops_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does where its file is locked for too long."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    details = RunDetails(
        job_id="ftjob-1",
        project="toque",
        entity=None,
        name="ftjob-1",
        tags=[],
        config={"seed": 1},
        created_at=0.0,
        folder=tmp_path,
    )
    run = trackio_run.begin(details)
    run.log(1, {"train_loss": 1.0}, 0.0)
    run.close(None)

    run = trackio_run.begin(details)
    assert run.last_step == 1
    with monkeypatch.context() as patch:
        patch.setattr(storage(), "bulk_log", failing_once(storage().bulk_log))
        run.log(2, {"train_loss": 0.5}, 0.0)
        wait_until(lambda: not run._run._queued_logs and run._run._sending_batch is None, "it is dropped")
        run.log(3, {"train_loss": 0.25}, 0.0)
        with pytest.raises(trackio_run.StepsLostError, match="2"):
            run.close("succeeded")

    run = trackio_run.begin(details)
    assert run.last_step == 1
    for step in (2, 3):
        run.log(step, {"train_loss": 1 / step}, 0.0)
    run.close("succeeded")
    kept = [(log["step"], log["train_loss"]) for log in storage().get_logs("toque", "ftjob-1")]
    assert sorted(kept) == [(1, 1.0), (2, 0.5), (3, 0.25)]


def storage() -> Any:
    return import_module("trackio.sqlite_storage").SQLiteStorage


def failing_once(log: Callable[..., None]) -> Callable[..., None]:
    errors = iter([sqlite3.OperationalError("database is locked")])

    def log_or_fail(**batch: Any) -> None:
        for error in errors:
            raise error
        log(**batch)

    return log_or_fail


def test_a_run_has_what_the_job_has_after_kill_9(
    client: OpenAI, database: Database, worker: Any, tmp_path: Path
) -> None:
    job = create_job(client, epochs=6)
    folder = tmp_path / "trackio"
    with worker(TRACKIO_DIR=str(folder)) as process:
        wait_until(lambda: steps_of(client, job.id) >= 8, "it trains")
        wait_until(lambda: sent_step(database, job.id) >= 4, "some steps are sent")
        process.kill()
        process.wait()
    with worker(TRACKIO_DIR=str(folder)):
        assert ended(client, job.id).status == "succeeded"
        sent_to_the_end(database, job.id)
    expected = logged(client, job.id)
    steps = read_steps(folder, job.id)
    assert [step.pop("step") for step in steps] == list(range(1, 61))
    for number, step in enumerate(steps, 1):
        step.pop("timestamp")
        assert step == expected[number]
