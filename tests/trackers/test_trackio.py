"""What trackio keeps in its folder."""

from __future__ import annotations

import subprocess
import sys
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

pytestmark = pytest.mark.one_database
pytest.importorskip("trackio")
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
