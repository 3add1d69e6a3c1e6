"""The deployment of these tests: its API, its Ray cluster, its fleet, and what can be seen of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI
from sqlalchemy import select

from app.completions.models import Engine
from app.core.database import Database, database_now
from app.core.settings import Settings
from app.fine_tuning import worker_registry
from app.fine_tuning.models import FineTuningJob, Worker
from benchmarks.ray_cluster import RAY_ENVIRONMENT
from tests.cluster.ray_cluster import MortalCluster
from tests.support.service import Service
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
MARK = "FLEET_LEDGER"
"""A variable that every process of the deployment's nodes has, and none other."""


@dataclass
class Deployment:
    """The running deployment."""

    settings: Settings
    database: Database
    service: Service
    cluster: MortalCluster
    fleet: subprocess.Popen[bytes] | None = field(default=None)

    def client(self) -> OpenAI:
        return self.service.client()

    def start_fleet(self, command: Sequence[str]) -> None:
        """Starts the fleet as a process of its own; its log goes to fleet.log."""
        with (self.settings.data_dir / "fleet.log").open("ab") as log:
            self.fleet = subprocess.Popen(
                [*command, f"--address={self.cluster.address}"],
                env=node_environment(self.settings),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def has_joined(self) -> bool:
        return "the fleet follows" in (self.settings.data_dir / "fleet.log").read_text()

    def stop_fleet(self) -> None:
        if self.fleet is not None and self.fleet.poll() is None:
            self.fleet.send_signal(signal.SIGTERM)
            self.fleet.wait(60)

    def workers(self) -> list[Worker]:
        """Workers that are alive, as far as their heartbeats say."""
        with self.database.reader() as session:
            return worker_registry.alive(session, self.settings.heartbeat_seconds)

    def engines(self) -> list[Engine]:
        """Engines that are alive, as far as their heartbeats say."""
        silent_since = database_now() - 3 * self.settings.heartbeat_seconds
        with self.database.reader() as session:
            return list(session.scalars(select(Engine).where(Engine.heartbeat_at > silent_since)))

    def job(self, job_id: str) -> FineTuningJob:
        with self.database.reader() as session:
            return session.get_one(FineTuningJob, job_id)

    def process_of(self, job_id: str) -> psutil.Process:
        """The worker that trains the job."""

        def reported() -> Worker | None:
            return next((each for each in self.workers() if each.id == self.job(job_id).worker_id), None)

        return psutil.Process(wait_until(reported, "the job's worker reports").pid)

    def ledger(self) -> list[dict[str, Any]]:
        """What stand-in workers wrote down, in order."""
        path = ledger_path(self.settings)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def processes(self) -> list[psutil.Process]:
        """Workers, trainers and engines of the deployment, wherever their parents are now."""
        mark = f"{MARK}={ledger_path(self.settings)}".encode()
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                environment = Path(f"/proc/{process.pid}/environ").read_bytes()
                command = " ".join(process.cmdline())
                if mark in environment and process.status() != psutil.STATUS_ZOMBIE and _is_ours(command):
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return found

    def find(self, role: str) -> psutil.Process | None:
        """One of the `worker` or `engine` processes that run; any of them."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if f"stand_in_{role}" in " ".join(process.cmdline()):
                    return process
        return None

    def is_idle(self) -> bool:
        return not self.workers() and not self.engines()

    def become_idle(self, seconds: float = 120) -> None:
        wait_until(self.is_idle, "the fleet has neither workers nor engines", seconds=seconds)


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; zombies have."""
    return psutil.wait_procs(processes, timeout=0)[1]


def _is_ours(command: str) -> bool:
    marks = ("stand_in_worker", "stand_in_engine", "stand_in_vllm", "stand_in_trainer", "workers.training")
    return any(mark in command for mark in (*marks, "workers.inference", "vllm.entrypoints"))


def ledger_path(settings: Settings) -> Path:
    return settings.data_dir / "ledger.jsonl"


def node_environment(settings: Settings) -> dict[str, str]:
    """The environment of the deployment's nodes and of its fleet."""
    given = settings.model_dump(mode="json", exclude_unset=True, exclude={"api_key"})
    return os.environ | {
        **{f"TOQUE_{name.upper()}": str(value) for name, value in given.items()},
        "HF_HUB_OFFLINE": "1",
        MARK: str(ledger_path(settings)),
        **RAY_ENVIRONMENT,
    }
