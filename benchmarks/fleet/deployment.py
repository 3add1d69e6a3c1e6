"""A deployment for one benchmark: a database, a storage, and a Ray cluster on which fleets run by turns."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from app.auth import service as auth_service
from app.core.database import Database
from app.core.migrations import upgrade
from app.core.settings import BaseModelEntry, Settings
from app.files.models import File
from app.fine_tuning.models import FineTuningJob, Worker
from app.storage import open_storage
from benchmarks.fleet.stand_in_fleet import COMMAND
from benchmarks.fleet.trainer import STEPS
from benchmarks.postgresql import execute, postgresql, sqlalchemy_url
from benchmarks.ray_cluster import RayCluster
from benchmarks.soak.deployment import environment

BASE_MODEL = "stand-in"
GPUS = {"a": 3, "b": 2}
"""What each node declares: four for workers, and one for an engine."""
IDLE_SECONDS = 5.0
POLL_SECONDS = 0.2
_EXAMPLE = b'{"messages":[{"role":"user","content":"Soup?"},{"role":"assistant","content":"Leek."}]}\n'
_HYPERPARAMETERS = {
    "n_epochs": 1,
    "batch_size": 1,
    "learning_rate": 0.001,
    "lora_rank": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "max_length": 64,
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """The running deployment."""

    settings: Settings
    database: Database
    cluster: RayCluster
    file: File

    @contextmanager
    def fleet(self, workers: int) -> Generator[None]:
        """Runs a fleet of at most so many workers, from when it follows the jobs."""
        log = self.settings.data_dir / f"fleet-{time.time():.0f}.log"
        with log.open("wb") as written:
            process = subprocess.Popen(
                [*COMMAND, f"--address={self.cluster.address}"],
                env=environment(self.settings) | {"TOQUE_FLEET_WORKERS": str(workers)},
                stdout=written,
                stderr=subprocess.STDOUT,
            )
        try:
            while "the fleet follows" not in log.read_text():
                assert process.poll() is None, log.read_text()
                time.sleep(POLL_SECONDS)
            yield
        finally:
            process.terminate()
            process.wait()

    def queue(self, count: int) -> float:
        """Queues so many jobs at once; returns when."""
        with self.database.writer() as session:
            session.add_all(
                FineTuningJob(
                    project_id=self.file.project_id,
                    status="queued",
                    model=BASE_MODEL,
                    training_file_id=self.file.id,
                    seed=0,
                    method="supervised",
                    hyperparameters=_HYPERPARAMETERS,
                )
                for _ in range(count)
            )
        return time.time()

    def jobs(self, queued_at: float) -> list[FineTuningJob]:
        """Returns the jobs that were claimed since."""
        of_round = select(FineTuningJob).where(FineTuningJob.started_at > queued_at)
        with self.database.reader() as session:
            return list(session.scalars(of_round))

    def count_unfinished(self) -> int:
        with self.database.reader() as session:
            unfinished = select(func.count()).where(FineTuningJob.finished_at.is_(None))
            return session.scalar(unfinished) or 0

    def count_workers(self) -> int:
        """Returns how many there are; a worker removes its row as it ends."""
        with self.database.reader() as session:
            return session.scalar(select(func.count()).select_from(Worker)) or 0


@contextmanager
def running_deployment() -> Generator[Deployment]:
    """Runs a deployment without any fleet."""
    with tempfile.TemporaryDirectory(prefix="toque-fleet-") as folder, postgresql() as server:
        execute(server.format("postgres"), "CREATE DATABASE toque")
        settings = Settings(
            data_dir=Path(folder),
            database_url=sqlalchemy_url(server.format("toque")),
            models_dir=Path(folder) / "models",
            base_models=[BaseModelEntry(name=BASE_MODEL, source=BASE_MODEL)],
            worker_idle_seconds=IDLE_SECONDS,
        )
        upgrade(settings.sqlalchemy_url)
        (settings.models_root / BASE_MODEL).mkdir(parents=True)
        (settings.models_root / BASE_MODEL / "config.json").write_text("{}")
        database = Database(settings.sqlalchemy_url)
        file = _add_file(database, settings)
        cluster = RayCluster(GPUS, environment(settings))
        try:
            for node in GPUS:
                cluster.add(node)
            yield Deployment(settings, database, cluster, file)
        finally:
            cluster.close()
            database.dispose()


def _add_file(database: Database, settings: Settings) -> File:
    stored = open_storage(settings).write("files/training", STEPS * _EXAMPLE)
    with database.writer() as session:
        project = auth_service.create_project(session, auth_service.FIRST_PROJECT)
        file = File(
            project_id=project.id,
            filename="training.jsonl",
            purpose="fine-tune",
            bytes=STEPS * len(_EXAMPLE),
            sha256=stored.sha256,
            storage_key=stored.key,
            examples=STEPS,
        )
        session.add(file)
    return file
