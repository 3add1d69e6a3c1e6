"""Compares the estimates of dry runs with what the jobs then take: `python -m benchmarks.estimates`.

An API and a worker with the real trainer on the real base model. One job is trained first, so that there is
a measured speed, as in any deployment that has trained before; then, for each of five datasets of different
lengths and sizes, a dry run is followed by the job itself. Time is from claim to end by the job's row, memory
the trainer's own peak. The last line is one JSON object: `worst_time_error`, `worst_memory_error` (shares of
what happened), and the figures of every dataset.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from app.auth import service as auth_service
from app.core.database import Database
from app.core.migrations import upgrade
from app.core.settings import Settings
from app.demo.house_style import STYLE_GUIDE
from app.fine_tuning.models import FineTuningJob, TrainingSpeed
from app.models.catalogue import Catalogue

KEY = "sk-toque-benchmark"


@dataclass(frozen=True)
class Dataset:
    """A dataset of random examples, whose lengths are ranges in words."""

    name: str
    examples: int
    question: tuple[int, int]
    answer: tuple[int, int]
    batch_size: int
    system: int = 0
    turns: int = 1
    rank: int = 16
    validated: bool = False

    def content(self) -> bytes:
        drawn, words = random.Random(self.name), STYLE_GUIDE.read_text("utf-8").split()

        def text(bounds: tuple[int, int]) -> str:
            return " ".join(drawn.choices(words, k=drawn.randint(*bounds)))

        system = text((self.system, self.system))
        lines: list[str] = []
        for _ in range(self.examples):
            messages = [{"role": "system", "content": system}] if system else []
            for _ in range(self.turns):
                messages.append({"role": "user", "content": text(self.question)})
                messages.append({"role": "assistant", "content": text(self.answer)})
            lines.append(json.dumps({"messages": messages}) + "\n")
        return "".join(lines).encode()


BEFORE = Dataset("earlier", 60, (5, 60), (5, 60), batch_size=4)
DATASETS = [
    Dataset("labels", 200, (8, 20), (1, 3), batch_size=8),
    Dataset("essays", 30, (10, 30), (120, 220), batch_size=4),
    Dataset("documents", 14, (400, 700), (10, 40), batch_size=2),
    Dataset("conversations", 36, (5, 30), (10, 50), batch_size=4, turns=4, rank=8),
    Dataset("instructions", 150, (5, 20), (5, 15), batch_size=16, system=250, validated=True),
]


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="toque-bench-") as folder,
        deployment(Path(folder)) as (client, database),
    ):
        train(client, database, BEFORE)
        results = [measure(client, database, dataset) for dataset in DATASETS]
    report(results)


@contextmanager
def deployment(folder: Path) -> Iterator[tuple[OpenAI, Database]]:
    """Run an API and a worker with a database of their own and the developer's base models."""
    settings = Settings(
        data_dir=folder, models_dir=Settings().models_root, database_url="", api_key=SecretStr(KEY)
    )
    upgrade(settings.sqlalchemy_url)
    database = Database(settings.sqlalchemy_url)
    with database.writer() as session:
        auth_service.ensure_first_key(session, KEY)
    environment = os.environ | {
        "TOQUE_DATA_DIR": str(folder),
        "TOQUE_MODELS_DIR": str(settings.models_root),
        "TOQUE_DATABASE_URL": "",
        "TOQUE_STORAGE_DIR": "",
        "TOQUE_API_KEY": KEY,
        "TOQUE_POLL_SECONDS": "0.2",
    }
    with socket.create_server(("127.0.0.1", 0)) as listener, (folder / "log").open("wb") as log:
        port = listener.getsockname()[1]
        api = [sys.executable, "-P", "-m", "app.cli.main", "api", "--fd", str(listener.fileno())]
        worker = [sys.executable, "-m", "workers.training.worker"]
        processes = [
            subprocess.Popen(command, env=environment, stderr=log, stdout=log, pass_fds=(listener.fileno(),))
            for command in (api, worker)
        ]
        try:
            with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY) as client:
                yield client, database
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
            database.dispose()


def measure(client: OpenAI, database: Database, dataset: Dataset) -> dict[str, Any]:
    """Measure a dry run, and the job after it."""
    request = upload(client, dataset)
    began = time.monotonic()
    asked = client.fine_tuning.jobs.create(
        **request | {"extra_body": request["extra_body"] | {"dry_run": True}}
    ).to_dict()
    dry_run_seconds = time.monotonic() - began
    seconds, peak = train(client, database, dataset, request)
    result = {
        "dataset": dataset.name,
        "tokens": asked["tokens_per_epoch"],
        "dry_run_seconds": round(dry_run_seconds, 1),
        "estimated_seconds": asked["time"]["seconds"],  # pyright: ignore
        "seconds": round(seconds, 1),
        "estimated_mib": round(asked["memory"]["peak_bytes"] / 2**20),  # pyright: ignore
        "mib": round(peak / 2**20),
    }
    result["time_error"] = round(result["estimated_seconds"] / seconds - 1, 3)
    result["memory_error"] = round(result["estimated_mib"] * 2**20 / peak - 1, 3)
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def upload(client: OpenAI, dataset: Dataset) -> dict[str, Any]:
    """Upload the dataset and return the request of its job."""
    file = client.files.create(file=(f"{dataset.name}.jsonl", dataset.content()), purpose="fine-tune")
    return {
        "model": Catalogue(Settings()).engine_base.name,
        "training_file": file.id,
        "seed": 1,
        "hyperparameters": {"n_epochs": 1, "batch_size": dataset.batch_size},
        "extra_body": {"lora_rank": dataset.rank}
        | ({"validation_split": {"share": 0.1}} if dataset.validated else {}),
    }


def train(
    client: OpenAI, database: Database, dataset: Dataset, request: dict[str, Any] | None = None
) -> tuple[float, int]:
    """Run the job; return the seconds and the bytes that it took."""
    job = client.fine_tuning.jobs.create(**(request or upload(client, dataset)))
    while job.status in ("queued", "running"):
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
    if job.status != "succeeded":
        raise SystemExit(f"{dataset.name}: {job.error}")
    with database.reader() as session:
        row, speed = session.get_one(FineTuningJob, job.id), session.get_one(TrainingSpeed, job.id)
    assert row.started_at is not None and row.finished_at is not None
    return row.finished_at - row.started_at, speed.peak_memory_bytes


def report(results: list[dict[str, Any]]) -> None:
    table = Table(
        "dataset", "tokens", "seconds: estimated", "actual", "off", "MiB: estimated", "actual", "off"
    )
    for one in results:
        seconds = (f"{one['estimated_seconds']:.0f}", f"{one['seconds']:.0f}", f"{one['time_error']:+.0%}")
        memory = (f"{one['estimated_mib']}", f"{one['mib']}", f"{one['memory_error']:+.0%}")
        table.add_row(one["dataset"], f"{one['tokens']:,}", *seconds, *memory)
    Console().print(table)
    worst = {
        f"worst_{name}": max(abs(one[name]) for one in results) for name in ("time_error", "memory_error")
    }
    print(json.dumps(worst | {"datasets": results}))


if __name__ == "__main__":
    main()
