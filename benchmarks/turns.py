"""A short job behind a long one: `python -m benchmarks.turns`.

A job of 40 steps is trained three times by the real trainer, through `toque api` and `toque worker` with
`TOQUE_WORKER_JOBS=2`: twice alone, of which the second counts, as the base model is loaded by then; and once
while a job of 2,000 steps with batches of the same size is trained. The long job is then cancelled.

Behind the long job, the short one must end within 3 times its time alone, with the same weights, bit by bit,
while the long one is still trained. The last line is one JSON object; the exit code is 1 if it did not.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from openai import OpenAI

from app.core.database import Database
from app.fine_tuning.models import FineTuningJob
from benchmarks.serving.deployment import create_deployment
from benchmarks.serving.measurements import progress
from benchmarks.vanish import POLL_SECONDS, TRAINING_FILE, Processes, Training, read_job, result, wait_for_api

_BATCH_SIZE = 8
_ALLOWED_RATIO = 3.0
_SHORT = {"examples": 64, "epochs": 5}
_LONG = {"examples": 320, "epochs": 50}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="toque-turns-") as folder:
        summary = measure(Path(folder))
    print(json.dumps(summary))
    sys.exit(not summary["passed"])


def measure(folder: Path) -> dict[str, Any]:
    """Train all jobs on a deployment in this folder; return what the last line says."""
    deployment = create_deployment(folder / "deployment", worker_jobs=2)
    processes = Processes(deployment, folder / "log")
    processes.start()
    database = Database(deployment.settings.sqlalchemy_url)
    client, base = processes.client, deployment.base.name

    def train_short() -> Training:
        job = wait_for_end(database, order(client, base, **_SHORT))
        trained = result(database, deployment, job, killed_at=[])
        progress(f"{len(trained.losses)} steps: {trained.status} after {trained.seconds:.0f} s")
        return trained

    try:
        wait_for_api(client)
        train_short()
        alone = train_short()
        long = order(client, base, **_LONG)
        while read_job(database, long).recorded_step < 2:
            time.sleep(POLL_SECONDS)
        behind = train_short()
        steps_of_long = read_job(database, long).recorded_step
        was_running = client.fine_tuning.jobs.cancel(long).status == "cancelled"
    finally:
        processes.kill()
        database.dispose()
    ratio = behind.seconds / alone.seconds
    equal = bool(alone.weights) and (behind.weights, behind.losses) == (alone.weights, alone.losses)
    return {
        "passed": was_running and equal and ratio <= _ALLOWED_RATIO,
        "ratio": round(ratio, 3),
        "weights_and_losses_equal": equal,
        "alone_seconds": round(alone.seconds, 1),
        "behind_seconds": round(behind.seconds, 1),
        "steps": len(alone.losses),
        "steps_of_long_job_meanwhile": steps_of_long,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
    }


def order(client: OpenAI, base_model: str, *, examples: int, epochs: int) -> str:
    """Create a job on that many lines of the demo's training file; return its id."""
    lines = islice(cycle(TRAINING_FILE.read_bytes().splitlines(keepends=True)), examples)
    file = client.files.create(file=("training.jsonl", b"".join(lines)), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": epochs, "batch_size": _BATCH_SIZE, "lora_dropout": 0.05}
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    return client.fine_tuning.jobs.create(model=base_model, training_file=file.id, seed=7, method=method).id


def wait_for_end(database: Database, job_id: str) -> FineTuningJob:
    while not (job := read_job(database, job_id)).finished_at:
        time.sleep(POLL_SECONDS)
    return job


if __name__ == "__main__":
    main()
