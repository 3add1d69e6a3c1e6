"""The worker process with the real trainer, on a tiny base model; jobs and upgrades on both databases."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import select, text

from app.core.database import Database
from app.core.migrations import upgrade
from app.core.settings import Settings
from app.files.models import File
from app.fine_tuning.models import FineTuningJob, Worker
from app.models.adapters.models import Adapter
from tests.support.databases import downgrade
from tests.support.training_files import training_bytes
from tests.support.waiting import wait_until
from tests.support.watched_process import Watched
from tests.support.worker import COMMAND, create, ended, run_worker, trainer_of


def test_jobs_are_trained_one_after_another(
    client: OpenAI, settings: Settings, database: Database, tmp_path: Path
) -> None:
    validation = client.files.create(file=("valid.jsonl", training_bytes(11)), purpose="fine-tune")
    jobs = [create(client, validation_file=validation.id), create(client, suffix="second")]
    with run_worker(settings, tmp_path) as worker:
        first, second = (ended(client, job.id) for job in jobs)
        with database.reader() as session:
            row = session.scalar(select(Worker))
        assert row is not None
        assert (row.pid, row.version) == (worker.pid, "0.1.0")
    with database.reader() as session:
        assert session.scalar(select(Worker)) is None, "a worker that ends takes its row away"

    for job in (first, second):
        assert (job.status, job.error) == ("succeeded", None), job
        assert job.fine_tuned_model == f"ft:tiny:default:{job.suffix or ''}:{job.id.removeprefix('ftjob-')}"
        assert job.finished_at >= job.created_at
        events = list(client.fine_tuning.jobs.list_events(job.id))
        assert (
            "Examples are packed into rows without padding, because the base model mixes tokens by causal "
            "attention alone"
        ) in [event.message for event in events]
        steps = [event.data["step"] for event in events if event.type == "metrics"]
        assert steps == list(range(12, 0, -1))
        rows = list(csv.DictReader(client.files.content(job.result_files[0]).text.splitlines()))
        assert list(rows[0]) == [
            "step",
            "train_loss",
            "train_accuracy",
            "valid_loss",
            "valid_mean_token_accuracy",
        ]
        assert [int(row["step"]) for row in rows] == list(range(1, 13))
        checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
        assert [checkpoint.step_number for checkpoint in checkpoints] == [12, 6]
        names = [checkpoint.fine_tuned_model_checkpoint for checkpoint in checkpoints]
        assert names == [f"{job.fine_tuned_model}:ckpt-step-{step}" for step in (12, 6)]
        assert {*names, job.fine_tuned_model} <= {model.id for model in client.models.list()}
    assert first.trained_tokens == second.trained_tokens > 0
    newest = client.fine_tuning.jobs.checkpoints.list(first.id).data[0]
    assert newest.metrics.full_valid_loss is not None
    assert newest.metrics.step == 12

    with database.reader() as session:
        adapter = session.get_one(Adapter, first.fine_tuned_model)
    folder = settings.storage_root / adapter.storage_key
    assert {"adapter_config.json", "adapter_model.safetensors", "manifest.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert f"jobs/{first.id}/1/" in adapter.storage_key


@pytest.mark.one_database
def test_a_job_that_cannot_be_trained_says_why(
    client: OpenAI, settings: Settings, database: Database, tmp_path: Path
) -> None:
    job = create(client)
    with database.reader() as session:
        stored = session.get_one(File, job.training_file)
    # The API checked the file; the disk has lost some of it since.
    (settings.storage_root / stored.storage_key).write_bytes(training_bytes(11) + b'{"messages"')
    with run_worker(settings, tmp_path):
        failed = ended(client, job.id)
    assert failed.status == "failed"
    assert (failed.error.code, failed.error.param) == ("invalid_training_file", "training_file")
    assert "12" in failed.error.message
    newest = client.fine_tuning.jobs.list_events(job.id).data[0]
    assert newest.level == "error"
    assert failed.error.message in newest.message
    assert (failed.fine_tuned_model, failed.result_files) == (None, [])


@pytest.mark.one_database
def test_a_cancelled_job_frees_its_worker(client: OpenAI, settings: Settings, tmp_path: Path) -> None:
    long = create(client, hyperparameters={"n_epochs": 50})
    after = create(client)
    with run_worker(settings, tmp_path, hold_at=8):
        wait_until((tmp_path / "held").exists, "it trains")
        wait_until(lambda: client.fine_tuning.jobs.checkpoints.list(long.id).data, "a checkpoint is there")
        assert client.fine_tuning.jobs.cancel(long.id).status == "cancelled"
        assert ended(client, after.id).status == "succeeded"
    cancelled = client.fine_tuning.jobs.retrieve(long.id)
    assert (cancelled.status, cancelled.fine_tuned_model, cancelled.result_files) == ("cancelled", None, [])
    assert client.fine_tuning.jobs.checkpoints.list(long.id).data, "finished checkpoints stay"


def test_no_job_is_taken_in_the_middle_of_an_upgrade(
    client: OpenAI, http: httpx2.Client, settings: Settings, database: Database, tmp_path: Path
) -> None:
    job = create(client)
    downgrade(settings.sqlalchemy_url, "-1")
    wait_until(lambda: "toque db upgrade" in database_check(http), "it is known to be outdated")
    with run_worker(settings, tmp_path):
        log = tmp_path / "worker.log"
        wait_until(
            lambda: "run `toque db upgrade`; no job is claimed until then" in log.read_text(), "it waits"
        )
        with database.reader() as session:  # the API asks for columns that are not there yet
            assert session.scalar(text("SELECT status FROM fine_tuning_jobs")) == "queued"
        upgrade(settings.sqlalchemy_url)
        assert ended(client, job.id).status == "succeeded"
    wait_until(lambda: database_check(http) == "ok", "it is known to be up to date")


def database_check(http: httpx2.Client) -> str:
    return http.get("/health/ready").json()["checks"]["database"]


@pytest.mark.one_database
def test_a_trainer_that_dies_is_replaced_and_in_the_end_the_job_fails(
    client: OpenAI, settings: Settings, tmp_path: Path
) -> None:
    job = create(client)
    held = tmp_path / "held"
    with run_worker(settings, tmp_path, hold_at=1) as worker:
        for attempt in range(1, 4):
            wait_until(held.exists, "it trains again")
            wait_until(lambda attempt=attempt: _messages(client, job.id, attempt), "it is recorded")
            held.unlink()  # so that the next one is held, too
            trainer_of(worker).kill()
        failed = ended(client, job.id)
    assert (failed.status, failed.error.code) == ("failed", "trainer_died")
    assert "SIGKILL" in failed.error.message


def _messages(client: OpenAI, job_id: str, attempt: int):
    """The log, once that many attempts have begun to train."""
    events = [
        e for e in client.fine_tuning.jobs.list_events(job_id, limit=1000) if "Training on" in e.message
    ]
    return events if len(events) >= attempt else []


@pytest.mark.one_database
def test_a_worker_that_is_told_to_stop_gives_its_job_back(
    client: OpenAI, settings: Settings, database: Database, tmp_path: Path
) -> None:
    job = create(client)
    with run_worker(settings, tmp_path, hold_at=3) as worker:
        wait_until((tmp_path / "held").exists, "it trains")
        trainer = trainer_of(worker)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=120) == 0
    assert not trainer.is_running()
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"
    with database.reader() as session:
        assert session.get_one(FineTuningJob, job.id).worker_id is None


@pytest.mark.one_database
def test_nothing_is_left_of_a_worker_that_was_killed(
    client: OpenAI, settings: Settings, tmp_path: Path
) -> None:
    job = create(client, hyperparameters={"n_epochs": 50})
    with run_worker(settings, tmp_path, COMMAND) as worker:
        wait_until(lambda: _messages(client, job.id, 1), "it trains")
        trainer = trainer_of(worker)
        assert trainer.nice() >= 10, "it leaves the cores to who waits for an answer"
        watched = Watched(trainer.pid)
        worker.kill()
        worker.wait()
        assert watched.ends(), "the trainer dies too"
    assert client.fine_tuning.jobs.retrieve(job.id).status == "running", "until its lease has passed"


@pytest.mark.one_database
def test_a_worker_ends_when_it_is_idle(client: OpenAI, settings: Settings, tmp_path: Path) -> None:
    job = create(client)
    with run_worker(
        settings, tmp_path, [*COMMAND, "--until-idle"], TOQUE_WORKER_IDLE_SECONDS="0.5"
    ) as worker:
        assert ended(client, job.id).status == "succeeded"
        assert worker.wait(120) == 0
    assert "there is no job for it" in (tmp_path / "worker.log").read_text()
