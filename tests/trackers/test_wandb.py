"""What W&B's library keeps in its offline mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from app.core.database import Database
from app.core.settings import Settings
from tests.support.worker import ended
from tests.trackers.conftest import create_job, logged, messages
from tests.trackers.test_mlflow import sent_to_the_end
from tests.trackers.wandb_file import read_history, read_records

pytestmark = pytest.mark.one_database
pytest.importorskip("wandb")
TRACKER = "wandb"
ASKED = {"project": "soups", "name": "first try", "entity": "kitchen", "tags": ["a", "b"]}


def test_a_run_has_what_the_job_has(
    client: OpenAI, database: Database, settings: Settings, worker: Any
) -> None:
    job = create_job(client, integrations=[{"type": "wandb", "wandb": ASKED}])
    with worker(WANDB_MODE="offline"):
        assert ended(client, job.id).status == "succeeded"
        sent_to_the_end(database, job.id)
    [file] = Path(settings.data_dir, "trackers").glob(f"wandb/offline-run-*-{job.id}/*.wandb")
    history = read_history(file)
    ours = [{name: value for name, value in step.items() if not name.startswith("_")} for step in history]
    expected = logged(client, job.id)
    assert [step["_step"] for step in history] == list(expected)[::-1] == list(range(1, 31))
    assert ours == [expected[step] for step in range(1, 31)]
    run = next(record.run for record in read_records(file) if record.WhichOneof("record_type") == "run")
    assert (run.run_id, run.project, run.entity, run.display_name) == (
        job.id,
        "soups",
        "kitchen",
        "first try",
    )
    assert list(run.tags) == ["a", "b"]
    sent = "The job's metrics are sent to W&B: the run 'first try' of the project 'soups'"
    assert sent in messages(client, job.id)
