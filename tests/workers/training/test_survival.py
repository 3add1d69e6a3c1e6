"""Kill, freeze, pause or starve it at any moment: the job ends once, truthfully, with the same model."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI
from sqlalchemy import select

from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning.models import FineTuningJob
from app.models.adapters.models import Adapter
from app.orphans import find_orphans
from app.storage import open_storage
from tests.support.crashes import CRASH_POINTS, train_through_crash
from tests.support.waiting import wait_until
from tests.support.worker import check_record, create, ended, run_worker, steps_of, trainer_of, weights

DPO_CRASH_POINTS = ["trainer.references_fixed", "checkpoint.before_rename"]
"""Those where it has more to lose."""


@dataclass
class Reference:
    """What a job that nothing disturbs gives; the same wherever it is trained."""

    losses: list[str]
    weights: dict[str, Any]


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    """By method; filled by the first test that needs it."""
    return {}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("method", "point"),
    [*(("supervised", point) for point in CRASH_POINTS), *(("dpo", point) for point in DPO_CRASH_POINTS)],
)
def test_a_crash_at_any_point_changes_nothing(
    method: str,
    point: str,
    references: dict[str, Reference],
    client: OpenAI,
    settings: Settings,
    database: Database,
    tmp_path: Path,
) -> None:
    if method not in references:
        with run_worker(settings, tmp_path):
            undisturbed = ended(client, create(client, method=method).id)
        references[method] = Reference(
            check_record(client, undisturbed), weights(database, settings, undisturbed.fine_tuned_model)
        )
    reference = references[method]

    job = create(client, method=method)
    start = partial(run_worker, settings, tmp_path)
    done = train_through_crash(client, job.id, start, point, tmp_path / "reached")
    assert done.fine_tuned_model is not None
    assert check_record(client, done) == reference.losses
    found = weights(database, settings, done.fine_tuned_model)
    assert all((found[name] == expected).all() for name, expected in reference.weights.items())
    with database.reader() as session:
        names = set(session.scalars(select(Adapter.name).where(Adapter.job_id == job.id)))
        orphans = find_orphans(session, open_storage(settings))
    checkpoints = {f"{done.fine_tuned_model}:ckpt-step-{step}" for step in (6, 12)}
    assert names == {done.fine_tuned_model, *checkpoints}
    assert orphans.missing == []


STEPS = 30
HELD_STEP = 10


@pytest.fixture
def long_job(client: OpenAI) -> str:
    """A job of so many steps, to be disturbed while its trainer is held."""
    return create(client, hyperparameters={"n_epochs": 5}).id


def is_held(client: OpenAI, job_id: str, tmp_path: Path) -> bool:
    """Whether the trainer waits at its step, and those before are recorded."""
    return (tmp_path / "held").exists() and steps_of(client, job_id) == HELD_STEP - 1


@pytest.mark.one_database
def test_a_paused_job_frees_its_worker_and_goes_on_where_it_stopped(
    client: OpenAI,
    settings: Settings,
    long_job: str,
    tmp_path: Path,
) -> None:
    with run_worker(settings, tmp_path, hold_at=HELD_STEP):
        wait_until(lambda: is_held(client, long_job, tmp_path), "it trains")
        for _ in range(2):
            assert client.fine_tuning.jobs.pause(long_job).status == "paused"
        other = create(client)
        assert ended(client, other.id).status == "succeeded"
        assert client.fine_tuning.jobs.retrieve(long_job).status == "paused"
    before = steps_of(client, long_job)
    with run_worker(settings, tmp_path):
        for _ in range(2):
            assert client.fine_tuning.jobs.resume(long_job).status in ("queued", "running")
        job = ended(client, long_job)
    assert job.status == "succeeded"
    check_record(client, job, steps=STEPS)
    resumed = [
        event.message
        for event in client.fine_tuning.jobs.list_events(long_job, limit=1000)
        if "resumed at step" in event.message
    ]
    assert len(resumed) == 1
    assert int(resumed[0].rsplit(" ", 1)[1]) >= before, "nothing is computed twice"


@pytest.mark.one_database
def test_a_drained_worker_hands_over_at_the_step(
    client: OpenAI,
    settings: Settings,
    long_job: str,
    tmp_path: Path,
) -> None:
    with run_worker(settings, tmp_path, hold_at=HELD_STEP) as worker:
        wait_until(lambda: is_held(client, long_job, tmp_path), "it trains")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=120) == 0
    waiting = client.fine_tuning.jobs.retrieve(long_job)
    assert waiting.status == "queued"
    before = steps_of(client, long_job)
    with run_worker(settings, tmp_path):
        job = ended(client, long_job)
    assert job.status == "succeeded"
    check_record(client, job, steps=STEPS)
    events = client.fine_tuning.jobs.list_events(long_job, limit=1000)
    resumed = [event.message for event in events if "resumed at step" in event.message]
    assert [int(message.rsplit(" ", 1)[1]) for message in resumed] == [before]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_damaged_checkpoint_is_passed_over(
    client: OpenAI, settings: Settings, long_job: str, tmp_path: Path
) -> None:
    with run_worker(settings, tmp_path, hold_at=HELD_STEP) as worker:
        wait_until(lambda: is_held(client, long_job, tmp_path), "it trains")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=120) == 0
    saved = sorted(
        (settings.storage_root / "jobs" / long_job / "1" / "checkpoints").iterdir(),
        key=lambda folder: int(folder.name.removeprefix("step-")),
    )
    (saved[-1] / "training_state.pt").write_bytes(b"half of it")
    with run_worker(settings, tmp_path):
        job = ended(client, long_job)
    assert job.status == "succeeded"
    check_record(client, job, steps=STEPS)
    log = [event.message for event in client.fine_tuning.jobs.list_events(long_job, limit=1000)][::-1]
    damaged = saved[-1].name.replace("-", " ")
    problem = "training_state.pt does not match its checksum"
    assert f"A checkpoint is damaged ({damaged}: {problem}); an earlier one is used" in log
    [resumed] = [int(line.rsplit(" ", 1)[1]) for line in log if "resumed at step" in line]
    assert f"step-{resumed}" == saved[-2].name


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_trainer_may_be_checkpoints_ahead_of_what_is_recorded(
    client: OpenAI, settings: Settings, database: Database, tmp_path: Path
) -> None:
    job_id = create(client).id
    checkpoints = settings.storage_root / "jobs" / job_id / "1" / "checkpoints"
    with run_worker(settings, tmp_path, hold_at=1, TOQUE_CHECKPOINT_SECONDS="1e-9"):
        wait_until((tmp_path / "held").exists, "it trains")
        with closing(sqlite3.connect(str(database.engine.url.database), timeout=60)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            (tmp_path / "held").write_text("go on")
            wait_until((checkpoints / "step-4").exists, "checkpoints are saved that nothing is recorded of")
            wait_until(lambda: not (checkpoints / "step-1").exists(), "the first is removed")
        job = ended(client, job_id)
    assert job.status == "succeeded", job.error
    check_record(client, job)


def is_writable(database: Database) -> bool:
    """Nobody holds the lock of the SQLite file; PostgreSQL itself ends what a frozen process has begun."""
    if database.engine.url.database is None or database.engine.dialect.name != "sqlite":
        return True
    with closing(sqlite3.connect(database.engine.url.database, timeout=0.1)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
    return True


def freeze(worker: subprocess.Popen[bytes], database: Database) -> list[psutil.Process]:
    """Stops the worker and its trainer, but not while it holds the lock of a SQLite file."""
    family = [psutil.Process(worker.pid), trainer_of(worker)]
    while True:
        for process in family:
            process.suspend()
        if is_writable(database):
            return family
        for process in family:
            process.resume()


def test_a_frozen_worker_that_wakes_up_publishes_nothing(
    client: OpenAI,
    settings: Settings,
    database: Database,
    long_job: str,
    tmp_path: Path,
) -> None:
    with run_worker(settings, tmp_path, hold_at=HELD_STEP) as zombie:
        wait_until(lambda: is_held(client, long_job, tmp_path), "it trains")
        family = freeze(zombie, database)
        try:
            with run_worker(settings, tmp_path):
                job = ended(client, long_job)
                after = [event.id for event in client.fine_tuning.jobs.list_events(long_job, limit=1000)]
        finally:
            for process in family:
                process.resume()
        # It finds out, lets go, and goes on to other work.
        assert ended(client, create(client).id).status == "succeeded"
    assert job.status == "succeeded"
    check_record(client, job, steps=STEPS)
    assert [event.id for event in client.fine_tuning.jobs.list_events(long_job, limit=1000)] == after
    assert client.fine_tuning.jobs.retrieve(long_job).fine_tuned_model == job.fine_tuned_model


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_trainer_that_hangs_is_replaced(
    client: OpenAI, settings: Settings, database: Database, long_job: str, tmp_path: Path
) -> None:
    with run_worker(settings, tmp_path, TOQUE_TRAINER_SILENCE_SECONDS="20", hold_at=HELD_STEP) as worker:
        wait_until(lambda: is_held(client, long_job, tmp_path), "it trains")
        trainer_of(worker).suspend()
        job = ended(client, long_job)
    assert job.status == "succeeded"
    check_record(client, job, steps=STEPS)
    log = [event.message for event in client.fine_tuning.jobs.list_events(long_job, limit=1000)]
    deaths = [line for line in log if line.startswith("The trainer died")]
    assert deaths == ["The trainer died (it said nothing for 20 s); the next attempt resumes at step 6"]
    with database.reader() as session:
        row = session.get_one(FineTuningJob, long_job)
    assert (row.attempts_failed, row.lease_epoch) == (0, 2)
