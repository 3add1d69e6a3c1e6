"""Trainer and engine on one device: never both, neither for ever, whoever dies. Both are stand-ins here."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from app.completions.models import SharedDevice
from app.core.database import Database, database_now
from app.core.lease import LeaseLostError
from app.core.settings import Settings
from tests.support.engine_thread import Running
from tests.support.service import BASE_MODEL
from tests.support.training_files import training_bytes
from tests.support.waiting import wait_until
from workers.device import Device, cpu
from workers.device_sharing import ServingTurns, TrainingTurns, shared_device
from workers.inference import engine as engine_module

ROOT = Path(__file__).parents[2]
SERVING_SECONDS = 1.5

pytestmark = pytest.mark.usefixtures("pids_file")
on_one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    silence = {"heartbeat_seconds": 8.0, "lease_seconds": 30.0}  # nobody seems dead, however busy the machine
    changes = silence | {"poll_seconds": 0.05, "retry_seconds": 0.1}
    shared = {"shared_device": "gpu-0", "shared_device_serving_seconds": SERVING_SECONDS}
    return settings.model_copy(update=changes | shared)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stand-in for vLLM has done."""
    monkeypatch.setattr(engine_module, "detect", lambda: Device("cuda", "GPU", 80 * 2**30))
    monkeypatch.setattr(engine_module, "_GATEWAYS_NOTICE_SECONDS", 0.1)
    monkeypatch.setenv("FAKE_VLLM_LOG", str(tmp_path / "vllm.log"))
    monkeypatch.setenv("FAKE_VLLM_BUSY", str(tmp_path / "busy"))
    return tmp_path / "vllm.log"


@pytest.fixture
def hold(log: Path) -> Path:
    """Trainers wait after a step until the test removes it."""
    (path := log.with_name("hold")).touch()
    return path


@pytest.fixture
def engine(settings: Settings, database: Database, log: Path) -> Iterator[Running]:
    engine = Running(settings, database, "vllm 0.32.0")
    engine.becomes("ready")
    yield engine
    engine.stop()


def done(log: Path) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in log.read_text().splitlines()]


@contextmanager
def worker(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    settings_of = {
        "TOQUE_DATA_DIR": settings.data_dir,
        "TOQUE_DATABASE_URL": settings.database_url,
        "TOQUE_MODELS_DIR": settings.models_root,
        "TOQUE_HEARTBEAT_SECONDS": settings.heartbeat_seconds,
        "TOQUE_POLL_SECONDS": settings.poll_seconds,
        "TOQUE_LEASE_SECONDS": settings.lease_seconds,
        "TOQUE_RETRY_SECONDS": settings.retry_seconds,
        "TOQUE_SHARED_DEVICE": settings.shared_device,
        "TOQUE_SHARED_DEVICE_SERVING_SECONDS": settings.shared_device_serving_seconds,
        "TOQUE_STORAGE_ROOM_BYTES": 0,
    }
    environment = os.environ | {name: str(value) for name, value in settings_of.items()}
    command = [sys.executable, "-m", "tests.support.sharing_worker", str(log)]
    with (settings.data_dir / "worker.log").open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=output)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)  # a test may have frozen it
            process.terminate()
            process.wait(timeout=120)


def create(client: OpenAI) -> str:
    file = client.files.create(file=("train.jsonl", training_bytes(24)), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": 1, "batch_size": 4}
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    return client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=file.id, method=method).id


def froze_between_writes(process: subprocess.Popen[bytes], settings: Settings) -> bool:
    """Freezes the process, unless it is just then writing: that would hold up everybody on SQLite."""
    process.send_signal(signal.SIGSTOP)
    with closing(sqlite3.connect(settings.data_dir / "toque.db", timeout=0.1)) as database:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            process.send_signal(signal.SIGCONT)
            return False
    return True


def let_lease_expire(database: Database) -> None:
    """As if the worker that has the device had been silent for long enough."""
    with database.writer() as session:
        session.get_one(SharedDevice, "gpu-0").worker_until = database_now() - 1


def becomes(client: OpenAI, job_id: str, status: str) -> None:
    def look() -> bool:
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.status in (status, "queued", "running"), job.error
        return job.status == status

    wait_until(look, f"{job_id} is {status}")


def has_trained(client: OpenAI, job_id: str) -> bool:
    return any(event.type == "metrics" for event in client.fine_tuning.jobs.list_events(job_id))


def lines(client: OpenAI, job_id: str) -> list[str]:
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100)][::-1]


def test_they_take_turns(settings: Settings, client: OpenAI, engine: Running, log: Path) -> None:
    jobs = [create(client), create(client)]
    with worker(settings, log):
        for job in jobs:
            becomes(client, job, "succeeded")
    engine.becomes("ready")
    assert done(log) == ["loads", "/sleep?level=1", "/wake_up", "/sleep?level=1", "/wake_up"]
    for job in jobs:
        said = lines(client, job)
        order = [
            "Waiting for the engine to release the GPU",
            "Training on none: 24 examples, 24 tokens an epoch, 6 steps, 32 trainable parameters",
            "Served as trained: log-probabilities of 2 tokens differ by 0.0000 in the mean "
            "(at most 0.15; the base's by 0.0000; training changed them by 1.0000)",
            "The job has successfully completed",
        ]
        places = [said.index(line) for line in order]
        assert places == sorted(places)
    times = [float(line.split()[0]) for line in log.read_text().splitlines()]
    assert times[3] - times[2] >= SERVING_SECONDS, "the engine had its turn between the two jobs"


@on_one_database
def test_a_killed_worker_leaves_no_engine_asleep(
    settings: Settings, database: Database, client: OpenAI, engine: Running, log: Path, hold: Path
) -> None:
    job = create(client)
    with worker(settings, log) as process:
        wait_until(lambda: has_trained(client, job), "it trains")
        engine.becomes("asleep")
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        psutil.wait_procs(children, timeout=60)
    let_lease_expire(database)
    engine.becomes("ready")
    assert done(log)[-1] == "/wake_up"
    client.fine_tuning.jobs.cancel(job)
    hold.unlink()
    last = create(client)
    with worker(settings, log):
        becomes(client, last, "succeeded")


@on_one_database
def test_a_frozen_worker_loses_the_device(
    settings: Settings, database: Database, client: OpenAI, engine: Running, log: Path, hold: Path
) -> None:
    job = create(client)
    with worker(settings, log) as process:
        wait_until(lambda: has_trained(client, job), "it trains")
        trainer = psutil.Process(process.pid).children()[0]
        trainer.suspend()
        wait_until(lambda: froze_between_writes(process, settings), "it is frozen")
        let_lease_expire(database)
        engine.becomes("ready")
        os.kill(process.pid, signal.SIGCONT)  # it finds that it has lost the device, and ends its trainer
        trainer.wait(timeout=60)
        client.fine_tuning.jobs.cancel(job)
    assert "the lease on gpu-0" in (settings.data_dir / "worker.log").read_text()


@on_one_database
def test_a_vllm_that_is_killed_in_its_sleep_comes_back_after_the_job(
    settings: Settings,
    client: OpenAI,
    engine: Running,
    log: Path,
    hold: Path,
    pids_file: Path,
) -> None:
    job = create(client)
    with worker(settings, log):
        wait_until(lambda: has_trained(client, job), "it trains")
        pid = int(pids_file.read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(pid), "the engine notices")
        engine.becomes("asleep", "a job trains on its device")
        hold.unlink()
        becomes(client, job, "succeeded")  # its trainer would have failed beside an engine
    assert done(log) == ["loads", "/sleep?level=1", "loads"]
    assert any(line.startswith("Served as trained") for line in lines(client, job))


@on_one_database
def test_an_engine_that_comes_while_a_job_trains_waits(
    settings: Settings, database: Database, client: OpenAI, log: Path, hold: Path
) -> None:
    job = create(client)
    with worker(settings, log):
        wait_until(lambda: has_trained(client, job), "it trains")
        engine = Running(settings, database, "vllm 0.32.0")
        engine.becomes("asleep", "a job trains on its device")
        hold.unlink()
        becomes(client, job, "succeeded")
    engine.becomes("ready")
    engine.stop()


@on_one_database
def test_what_was_begun_is_answered_first(
    settings: Settings, client: OpenAI, engine: Running, log: Path, tmp_path: Path
) -> None:
    (tmp_path / "busy").touch()
    job = create(client)
    with worker(settings, log):
        engine.becomes("draining")
        assert "/sleep?level=1" not in done(log)
        assert not has_trained(client, job)
        (tmp_path / "busy").unlink()
        becomes(client, job, "succeeded")


@on_one_database
def test_a_job_that_is_cancelled_while_an_engine_answers_holds_up_no_other(
    settings: Settings, client: OpenAI, engine: Running, log: Path, tmp_path: Path
) -> None:
    (tmp_path / "busy").touch()
    cancelled, other = create(client), create(client)
    with worker(settings, log):
        engine.becomes("draining")
        client.fine_tuning.jobs.cancel(cancelled)
        becomes(client, other, "running")
        (tmp_path / "busy").unlink()
        becomes(client, other, "succeeded")


@on_one_database
@pytest.mark.parametrize("fault", ["endless answers", "no sleep"])
def test_a_vllm_that_does_not_sleep_is_stopped(
    settings: Settings,
    database: Database,
    client: OpenAI,
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pids_file: Path,
    fault: str,
) -> None:
    if fault == "no sleep":
        monkeypatch.setenv("FAKE_VLLM", "sleepless")
    else:
        (tmp_path / "busy").touch()
        monkeypatch.setattr(engine_module, "_DRAIN_SECONDS", 0.3)
    engine = Running(settings, database, "vllm 0.32.0")
    engine.becomes("ready")
    pid = int(pids_file.read_text().split()[0])
    job = create(client)
    with worker(settings, log):
        becomes(client, job, "succeeded")
    engine.becomes("ready")
    assert not psutil.pid_exists(pid)
    assert done(log).count("loads") == 2
    engine.stop()


@on_one_database
def test_on_a_cpu_there_is_nothing_to_share(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    assert shared_device(settings, Device("cuda", "GPU", 80 * 2**30)) == "gpu-0"
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        assert shared_device(settings, cpu()) == ""
    assert "does nothing here" in caplog.text
    assert (
        shared_device(settings.model_copy(update={"shared_device": ""}), Device("cuda", "GPU", 80 * 2**30))
        == ""
    )


def test_whose_turn_it_is(settings: Settings, database: Database) -> None:
    engines = ServingTurns(database, settings.model_copy(update={"poll_seconds": 0.0}), "gpu-0")
    first, second = (TrainingTurns(database, settings, "gpu-0", f"worker_{n}") for n in (1, 2))

    def begins(worker: TrainingTurns) -> bool:
        with database.writer() as session:
            may = worker.may_begin(session)
            if may:
                worker.begin(session)
        return may

    def renews(worker: TrainingTurns) -> bool:
        try:
            with database.writer() as session:
                worker.renew(session)
        except LeaseLostError:
            return False
        return True

    def later(**columns: float) -> None:
        """As if those moments had come."""
        with database.writer() as session:
            device = session.get_one(SharedDevice, "gpu-0")
            for name, seconds in columns.items():
                setattr(device, name, database_now() + seconds)

    assert not engines.is_wanted()
    assert engines.take_back()
    assert not begins(first), "an engine loads"
    engines.begin()
    assert not begins(first), "it has its turn"
    later(engine_until=-1)
    assert begins(first)
    assert not begins(second)
    assert (engines.is_wanted(), engines.take_back()) == (True, False)
    assert renews(first)
    later(worker_until=-1)
    assert not engines.is_wanted()
    assert begins(second), "the first is dead, it seems"
    assert not renews(first)
    first.end()
    assert engines.is_wanted(), "what is not its own it does not give away"
    later(worker_until=-1)
    assert engines.take_back()
    assert not renews(second)
    second.end()
    assert renews(second), "it needs nothing any more"
    engines.give_up()
    assert begins(first)
    first.end()
    assert begins(second), "without an engine nobody needs a turn between two jobs"
