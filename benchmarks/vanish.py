"""A job on a machine that vanishes every 45 seconds: `python -m benchmarks.vanish`.

The same job is trained twice by the real trainer, through `toque api` and `toque worker` with the default
settings, on a deployment of its own each time: once undisturbed, once while every process (API, worker,
trainer) is killed with SIGKILL every `--kill-every` seconds, and started again at once.

The job must succeed within 1.5 times its undisturbed time, with the same weights, bit by bit, and the same
losses in its log. The last line is one JSON object; the exit code is 1 if it did not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI, OpenAIError
from sqlalchemy import select

from app.core.database import Database
from app.fine_tuning.models import FINAL_STATUSES, Event, FineTuningJob
from app.models.adapters.models import Adapter
from app.storage import open_storage
from benchmarks.serving.deployment import API_KEY, Deployment, create_deployment
from benchmarks.serving.measurements import progress

TRAINING_FILE = Path(__file__).parents[1] / "app/demo/training.jsonl"
_ALLOWED_RATIO = 1.5
POLL_SECONDS = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=4, help="4 are five minutes on two cores")
    parser.add_argument("--kill-every", type=float, default=45.0, metavar="SECONDS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="toque-vanish-") as folder:
        undisturbed = train(Path(folder) / "undisturbed", options.epochs, kill_every=None)
        progress(f"undisturbed: {undisturbed.seconds:.0f} s")
        killed = train(Path(folder) / "killed", options.epochs, kill_every=options.kill_every)
    ratio = killed.seconds / undisturbed.seconds
    equal = (killed.weights, killed.losses) == (undisturbed.weights, undisturbed.losses)
    passed = killed.status == undisturbed.status == "succeeded" and equal and ratio <= _ALLOWED_RATIO
    summary = {
        "passed": passed,
        "status": killed.status,
        "weights_and_losses_equal": equal,
        "ratio": round(ratio, 3),
        "undisturbed_seconds": round(undisturbed.seconds, 1),
        "killed_seconds": round(killed.seconds, 1),
        "kills": len(killed.killed_at),
        "steps": len(killed.losses),
        **killed.describe_attempts(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(summary))
    sys.exit(not passed)


@dataclass
class Training:
    """What became of a job."""

    status: str
    seconds: float
    """From its creation to its end."""
    weights: str
    """The SHA-256 of its model's weights; empty if there is none."""
    losses: list[float]
    killed_at: list[float]
    events: list[Event] = field(repr=False)

    def describe_attempts(self) -> dict[str, Any]:
        """Return medians of what a death costs: until the claim, until the first step begins, steps lost."""
        claims, starts, lost = list[float](), list[float](), list[int]()
        for killed_at in self.killed_at:
            before = [event for event in self.events if event.created_at < killed_at]
            after = [event for event in self.events if event.created_at >= killed_at]
            claim = next((e for e in after if e.message == "Fine-tuning job resumed"), None)
            start = next((e for e in after if e.message.startswith("Training on")), None)
            if claim and start:
                claims.append(claim.created_at - killed_at)
                starts.append(start.created_at - claim.created_at)
                resumed = int(start.message.rpartition("resumed at step ")[2] or 0)
                done = max((e.data["step"] for e in before if e.data), default=0)
                lost.append(max(0, done - resumed))
        return {
            "seconds_from_kill_to_claim": _median(claims),
            "seconds_from_claim_to_first_step": _median(starts),
            "steps_lost": _median(lost),
        }


def train(folder: Path, epochs: int, *, kill_every: float | None) -> Training:
    """Train the job on a deployment in a new folder."""
    deployment = create_deployment(folder)
    processes = Processes(deployment, folder / "log")
    processes.start()
    killed_at = list[float]()
    database = Database(deployment.settings.sqlalchemy_url)
    try:
        job_id = order(processes.client, deployment.base.name, epochs)
        while not (job := read_job(database, job_id)).finished_at:
            began = killed_at[-1] if killed_at else job.created_at
            if kill_every and time.time() - began >= kill_every:
                killed_at.append(time.time())
                processes.kill()
                processes.start()
                progress(f"kill {len(killed_at)}: {job.status}, step {job.recorded_step}")
            time.sleep(POLL_SECONDS)
        return result(database, deployment, job, killed_at)
    finally:
        processes.kill()
        database.dispose()


class Processes:
    """The API and the worker of a deployment, and what they start."""

    def __init__(self, deployment: Deployment, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port: int = listener.getsockname()[1]
        self._environment = deployment.environment | {"TOQUE_PORT": str(port), "PYTHONUNBUFFERED": "1"}
        self._log = log
        self._running: Sequence[subprocess.Popen[bytes]] = ()
        self.client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=API_KEY, max_retries=0)

    def start(self) -> None:
        """Start them, as a machine does that comes back."""
        with self._log.open("ab") as log:
            self._running = [
                subprocess.Popen(
                    [sys.executable, "-m", "app.cli.main", program],
                    env=self._environment,
                    stdout=log,
                    stderr=log,
                )
                for program in ("api", "worker")
            ]

    def kill(self) -> None:
        """Kill all of them, and wait until they are gone."""
        everything = list[psutil.Process]()
        for process in self._running:
            with suppress(psutil.NoSuchProcess):
                leader = psutil.Process(process.pid)
                everything += [leader, *leader.children(recursive=True)]
        for process in everything:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everything)


def order(client: OpenAI, base_model: str, epochs: int) -> str:
    """Upload the training file and create the job, once the API answers; return the job's id."""
    wait_for_api(client)
    file = client.files.create(file=TRAINING_FILE, purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": epochs, "batch_size": 8, "lora_rank": 16, "lora_dropout": 0.05}
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    return client.fine_tuning.jobs.create(model=base_model, training_file=file.id, seed=7, method=method).id


def wait_for_api(client: OpenAI) -> None:
    while True:
        try:
            client.models.list()
            return
        except OpenAIError:
            time.sleep(POLL_SECONDS)


def read_job(database: Database, job_id: str) -> FineTuningJob:
    with database.reader() as session:
        return session.get_one(FineTuningJob, job_id)


def result(
    database: Database, deployment: Deployment, job: FineTuningJob, killed_at: list[float]
) -> Training:
    assert job.status in FINAL_STATUSES
    with database.reader() as session:
        events = session.scalars(select(Event).where(Event.job_id == job.id).order_by(Event.seq)).all()
        adapter = session.get(Adapter, job.fine_tuned_model) if job.fine_tuned_model else None
    weights = ""
    if adapter is not None:
        with open_storage(deployment.settings).local(adapter.storage_key) as adapter_dir:
            weights = hashlib.sha256((adapter_dir / "adapter_model.safetensors").read_bytes()).hexdigest()
    return Training(
        status=job.status,
        seconds=(job.finished_at or 0.0) - job.created_at,
        weights=weights,
        losses=[event.data["train_loss"] for event in events if event.data],
        killed_at=killed_at,
        events=list(events),
    )


def _median(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 1) if values else None


if __name__ == "__main__":
    main()
