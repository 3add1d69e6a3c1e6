"""Several jobs on one warm base: each is trained as it would be alone, and none disturbs another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from safetensors.torch import load_file
from sqlalchemy import select, update

from app.core.database import Database
from app.core.settings import Settings
from app.files.models import File
from app.fine_tuning.models import FineTuningJob
from tests.support.examples import Lines, preference_pairs
from tests.support.trainer import Child, losses, with_
from tests.support.training_files import chat_line, training_bytes
from tests.support.waiting import wait_until
from tests.support.worker import (
    check_record,
    create,
    ended,
    kill_with_trainer,
    run_worker,
    steps_of,
    trainer_of,
    weights,
)
from workers.training.protocol import Failed, Finished, Progress, Step, StopJob, Stopped, TrainingSpec


def train_together(
    child: Child, specs: Sequence[TrainingSpec], stop: str | None = None
) -> dict[str, list[Progress]]:
    """What the trainer says about each job; the one to `stop` is told so after its third step."""
    said: defaultdict[str, list[Any]] = defaultdict(list)
    ended: list[str] = []
    child.hold(stop or "", 3 if stop else None)
    for spec in specs:
        child.send(spec)
    while len(ended) < len(specs):
        message = child.hear()
        said[message.attempt].append(message)
        if isinstance(message, Step) and message.attempt == stop and message.metrics.step == 3:
            child.send(StopJob(attempt=stop))
        if isinstance(message, Finished | Failed | Stopped):
            ended.append(message.attempt)
    assert list(said) == [spec.attempt for spec in specs], "they begin in order"
    return dict(said) | {"": ended}


def adapter(said: Sequence[Any]) -> dict[str, Any]:
    assert isinstance(said[-1], Finished), said[-1]
    return load_file(Path(said[-1].path) / "adapter_model.safetensors")


def different(spec: TrainingSpec, jsonl: Lines) -> list[TrainingSpec]:
    """A long job, and short ones that change as much as jobs can of what they share."""
    pairs = str(jsonl(preference_pairs(20), "pairs.jsonl"))
    return [
        with_(spec, attempt="long", n_epochs=8, lora_dropout=0.3),
        with_(spec, attempt="other", seed=7, lora_rank=2, lora_dropout=0.1, target_modules="attention"),
        with_(spec, attempt="diverging", learning_rate=1e30),
        with_(spec, attempt="preferences", method="dpo", training_file=pairs, beta=0.5),
        with_(spec, attempt="short", learning_rate=3e-3, batch_size=7, halvings=2),
    ]


def test_jobs_that_take_turns_get_the_weights_that_they_get_alone(
    child: Child, spec: TrainingSpec, jsonl: Lines
) -> None:
    alone = {each.attempt: child.train(each) for each in different(spec, jsonl)}
    together = train_together(child, different(spec, jsonl))
    assert together[""][-1] == "long", "the short ones have not waited for it"
    for attempt in ("long", "other", "preferences", "short"):
        assert losses(together[attempt]) == losses(alone[attempt])
        expected, found = adapter(alone[attempt]), adapter(together[attempt])
        assert found.keys() == expected.keys()
        assert all((found[name] == weight).all() for name, weight in expected.items())
    for said in (alone["diverging"], together["diverging"]):
        assert isinstance(said[-1], Failed)
        assert said[-1].code == "training_diverged"


def test_one_is_stopped_and_resumed_while_others_go_on(
    child: Child, spec: TrainingSpec, jsonl: Lines
) -> None:
    long, other = different(spec, jsonl)[:2]
    alone = child.train(with_(long))
    together = train_together(child, [long, other], stop="long")
    stopped = together["long"][-1]
    assert isinstance(stopped, Stopped)
    assert 3 <= stopped.step < 40
    assert isinstance(together["other"][-1], Finished)
    checkpoint = f"{long.output_dir}/checkpoints/step-{stopped.step}"
    resumed = train_together(child, [with_(other), with_(long, resume_from=checkpoint)])
    assert losses(together["long"]) | losses(resumed["long"]) == losses(alone)
    expected, found = adapter(alone), adapter(resumed["long"])
    assert all((found[name] == weight).all() for name, weight in expected.items())


@pytest.mark.one_database
def test_a_worker_trains_several_jobs_at_once(
    client: OpenAI, settings: Settings, database: Database, tmp_path: Path
) -> None:
    short = {"n_epochs": 2, "lora_dropout": 0.2}
    with run_worker(settings, tmp_path):
        alone = ended(client, create(client, hyperparameters=short).id)

    # So long that neither ends, however late the test comes to stop it.
    numbers = {"n_epochs": 50, "batch_size": 2}
    long, paused = (create(client, training_bytes(240), hyperparameters=numbers).id for _ in range(2))
    broken = create(client, training_bytes(25))
    with database.reader() as session:
        key = session.get_one(File, broken.training_file).storage_key
    (settings.storage_root / key).write_bytes(b"not what was uploaded")
    with run_worker(settings, tmp_path, TOQUE_WORKER_JOBS="3"):
        failed, beside = (ended(client, job) for job in (broken.id, create(client, hyperparameters=short).id))
        wait_until(lambda: steps_of(client, long) and steps_of(client, paused), "both are trained")
        assert client.fine_tuning.jobs.pause(paused).status == "paused"
        after = ended(client, create(client, hyperparameters=short).id)
        assert client.fine_tuning.jobs.retrieve(long).status == "running"
        assert client.fine_tuning.jobs.cancel(long).status == "cancelled"

    assert (failed.status, failed.error and failed.error.code) == ("failed", "invalid_training_file")
    expected = weights(database, settings, alone.fine_tuned_model)
    for job in (beside, after):
        assert job.status == "succeeded", job.error
        assert check_record(client, job) == check_record(client, alone)
        found = weights(database, settings, job.fine_tuned_model)
        assert all((found[name] == weight).all() for name, weight in expected.items())
    with database.reader() as session:
        epochs = set(session.scalars(select(FineTuningJob.lease_epoch)))
    assert epochs == {1}, "no attempt was lost with another"


@pytest.mark.one_database
def test_a_worker_that_was_frozen_takes_no_job_from_itself(
    client: OpenAI, settings: Settings, database: Database, tmp_path: Path
) -> None:
    """When it wakes up, its lease has expired, and it may look for such leases before it renews its own."""
    job = create(client).id

    def row() -> FineTuningJob:
        with database.reader() as session:
            return session.get_one(FineTuningJob, job)

    with run_worker(settings, tmp_path, hold_at=2, TOQUE_WORKER_JOBS="2"):
        wait_until((tmp_path / "held").exists, "it trains")
        for _ in range(10):
            with database.writer() as session:
                session.execute(update(FineTuningJob).values(lease_until=0.0))
            wait_until(lambda: row().lease_until != 0.0, "the lease is renewed")
        assert (row().status, row().lease_epoch, row().workers_lost) == ("running", 1, 0)


TWO: dict[str, Any] = {"n_epochs": 3, "lora_dropout": 0.2}
STEPS = 18
HELD = 14
"""Steps of both together at which the trainer is held, so that each has taken some."""


@dataclass
class Alone:
    """What a job gives when it is trained alone; the same wherever it is trained."""

    losses: list[str]
    weights: dict[str, Any]


@dataclass
class Pair:
    """Two jobs, and what they give when they are trained alone."""

    jobs: list[str]
    alone: list[Alone]

    def check(self, client: OpenAI, settings: Settings, database: Database) -> None:
        """Wait for the end of both: they give the same."""
        for job, alone in zip(self.jobs, self.alone, strict=True):
            done = ended(client, job)
            assert done.status == "succeeded", done.error
            assert check_record(client, done, STEPS) == alone.losses
            found = weights(database, settings, done.fine_tuned_model)
            assert all((found[name] == weight).all() for name, weight in alone.weights.items())


def create_two(client: OpenAI) -> list[str]:
    kinds = ({**TWO, "lora_rank": 4}, {**TWO, "lora_rank": 8, "target_modules": "attention"})
    return [create(client, hyperparameters=each).id for each in kinds]


@pytest.fixture(scope="module")
def trained_alone() -> list[Alone]:
    """Filled by the first test that needs it."""
    return []


@pytest.fixture
def pair(
    trained_alone: list[Alone], client: OpenAI, settings: Settings, database: Database, tmp_path: Path
) -> Pair:
    if not trained_alone:
        with run_worker(settings, tmp_path):
            done = [ended(client, job) for job in create_two(client)]
        trained_alone += [
            Alone(check_record(client, job, STEPS), weights(database, settings, job.fine_tuned_model))
            for job in done
        ]
    return Pair(create_two(client), trained_alone)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("killed", ["worker", "trainer"])
def test_all_go_on_where_they_were_after_kill_9(
    killed: str, pair: Pair, client: OpenAI, settings: Settings, database: Database, tmp_path: Path
) -> None:
    environment = {"TOQUE_WORKER_JOBS": "2", "TOQUE_CHECKPOINT_SECONDS": "1e-9"}
    with run_worker(settings, tmp_path, hold_at=HELD, first_jobs=2, **environment) as worker:
        wait_until((tmp_path / "held").exists, "both are trained")
        steps = HELD - 1  # recorded by the worker, which hears of them a little later
        wait_until(lambda: sum(steps_of(client, job) for job in pair.jobs) == steps, "that is recorded")
        if killed == "worker":
            kill_with_trainer(worker)
        else:
            trainer_of(worker).kill()
            pair.check(client, settings, database)
    if killed == "worker":
        with run_worker(settings, tmp_path, **environment):
            pair.check(client, settings, database)
    for job in pair.jobs:
        log = [event.message for event in client.fine_tuning.jobs.list_events(job, limit=1000)]
        [resumed] = [line for line in log if "resumed at step" in line]
        assert int(resumed.rsplit(" ", 1)[1]) >= HELD // 2 - 2
        died = "The trainer died (signal SIGKILL) while several jobs took turns: they go on one by one"
        assert log.count(died) == (killed == "trainer")
    with database.reader() as session:
        rows = session.scalars(select(FineTuningJob).where(FineTuningJob.id.in_(pair.jobs))).all()
    assert {(row.attempts_failed, row.workers_lost) for row in rows} == {(0, 0)}
    assert {row.lease_epoch for row in rows} == {2 if killed == "worker" else 1}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_one_that_does_not_fit_into_memory_fails_alone(
    pair: Pair, client: OpenAI, settings: Settings, database: Database, tmp_path: Path
) -> None:
    large = create(client, training_bytes(24) + chat_line("Recite.", "leek " * 80).encode())
    with run_worker(settings, tmp_path, first_jobs=3, TOQUE_WORKER_JOBS="3", TRAINER_ROOM="250"):
        pair.check(client, settings, database)
        failed = ended(client, large.id)
    assert (failed.status, failed.error and failed.error.code) == ("failed", "out_of_memory")
    log = [event.message for event in client.fine_tuning.jobs.list_events(large.id, limit=1000)]
    assert "Out of memory while several jobs took turns: this one goes on alone" in log
