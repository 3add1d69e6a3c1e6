"""A machine vanishes again and again, or gives notice: the job goes on from where it was."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from openai import OpenAI
from sqlalchemy import select

from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning.models import FineTuningJob
from app.models.adapters.models import Adapter
from app.storage import open_storage
from tests.support.waiting import wait_until
from tests.support.worker import check_record, create, ended, kill_with_trainer, run_worker, weights

EPOCHS, STEPS = 3, 18
DEATHS = 3
"""As many as fail a job that makes no progress."""
STEPS_OF_AN_ATTEMPT = 4


@pytest.mark.one_database
def test_a_job_outlives_any_number_of_machines(
    client: OpenAI, settings: Settings, database: Database, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"lease_seconds": 3600.0, "retry_seconds": 3600.0})
    with run_worker(settings, tmp_path):
        undisturbed = ended(client, create(client, hyperparameters={"n_epochs": EPOCHS}).id)
    expected = weights(database, settings, undisturbed.fine_tuned_model)

    held = tmp_path / "held"
    job = create(client, hyperparameters={"n_epochs": EPOCHS}).id
    often = {"TOQUE_CHECKPOINT_SECONDS": "1e-9"}

    def saved_step() -> int | None:
        with database.reader() as session:
            return session.get_one(FineTuningJob, job).saved_step

    for death in range(1, DEATHS + 1):
        # Its predecessor's lease lasts for an hour, but here it is known to be dead.
        with run_worker(settings, tmp_path, hold_at=STEPS_OF_AN_ATTEMPT, **often) as worker:
            wait_until(held.exists, "it trains")
            recorded = death * (STEPS_OF_AN_ATTEMPT - 1)  # by the worker, which hears of it a little later
            wait_until(lambda recorded=recorded: saved_step() == recorded, "what it saved is recorded")
            kill_with_trainer(worker)
            assert worker.wait(timeout=120) == -signal.SIGKILL
        held.unlink()
        assert saved_step() == recorded, "each step but the last, in which it was killed"
    with run_worker(settings, tmp_path, **often):
        done = ended(client, job)

    assert done.status == "succeeded", done.error
    assert check_record(client, done, STEPS) == check_record(client, undisturbed, STEPS)
    found = weights(database, settings, done.fine_tuned_model)
    assert all((found[name] == weight).all() for name, weight in expected.items())
    with database.reader() as session:
        served = set(session.scalars(select(Adapter.storage_key).where(Adapter.job_id == job)))
    kept = {entry.key for entry in open_storage(settings).list(f"jobs/{job}/*/checkpoints/*")}
    assert served <= kept
    assert len(kept - served) <= 3, "the last attempt's last two, and the one that it resumed from"
    log = [event.message for event in client.fine_tuning.jobs.list_events(job, limit=1000)][::-1]
    assert [line for line in log if line.startswith("Its worker died")] == [
        f"Its worker died; the next attempt resumes at step {3 * death}" for death in range(1, DEATHS + 1)
    ]


@pytest.mark.one_database
def test_notice_in_the_middle_of_a_step_is_heard_at_once(
    client: OpenAI, settings: Settings, database: Database, tmp_path: Path
) -> None:
    job = create(client, hyperparameters={"n_epochs": EPOCHS, "lora_dropout": 0.1}).id
    with run_worker(settings, tmp_path, hold_at=10, hold_point="trainer.micro_batch") as worker:
        wait_until((tmp_path / "held").exists, "it trains")
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait(timeout=120) == 0
    with database.reader() as session:
        row = session.get_one(FineTuningJob, job)
    assert (row.status, row.saved_step, row.attempts_failed, row.workers_lost) == ("queued", 9, 0, 0)
    with run_worker(settings, tmp_path):
        done = ended(client, job)
        same = {"n_epochs": EPOCHS, "lora_dropout": 0.1}
        undisturbed = ended(client, create(client, hyperparameters=same).id)
    assert check_record(client, done, STEPS) == check_record(client, undisturbed, STEPS)
