"""The rows of a project that has been used for years: jobs, models, aliases, comparisons, their traffic."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from app.auth.models import ApiKey, Project
from app.core.database import Base, Database
from app.files.models import File
from app.fine_tuning.models import Checkpoint, Event, FineTuningJob
from app.models.adapters.models import Adapter
from app.models.aliases.models import Alias, AliasChange
from app.usage.models import AliasUsage, Usage
from benchmarks.console.comparison_rows import comparison_rows

JOBS, MODELS, ALIASES, COMPARISONS = 10_000, 1_000, 200, 200
LONG_STEPS = 100_000
LONG, LIVE = "ftjob-long", "ftjob-live"
ALIAS = "team-0:production"
_LOGGED_JOBS, _LOGGED_STEPS = 200, 50
_MINUTES = 24 * 60
_DAY = 86_400
_AT_ONCE = 5_000

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Made:
    """What the pages of the project are about."""

    model: str
    """The served name of a model to which an alias points."""
    jobs: list[str]
    """Jobs with recorded steps."""


class Builder:
    """Adds rows in bulk to one project."""

    def __init__(self, session: Session, base: str) -> None:
        self._session = session
        self._base = base
        self._project = session.scalars(select(Project).order_by(Project.created_at)).first()
        self._key = session.scalars(select(ApiKey).where(ApiKey.project_id == self._project.id)).first()
        self._now = time.time()
        self._random = random.Random(16)

    def build(self) -> Made:
        """Adds everything; a model's job, its checkpoint and its alias belong together."""
        self._add(File, self._files())
        self._add(FineTuningJob, self._jobs())
        self._add(Adapter, self._adapters())
        self._add(Checkpoint, self._checkpoints())
        logged = [_job(number) for number in range(_LOGGED_JOBS)]
        for job in logged:
            self._add(Event, self.steps(job, _LOGGED_STEPS))
        self._add(Event, self.steps(LONG, LONG_STEPS))
        self._add(Event, self.steps(LIVE, 500))
        self._add(Alias, self._aliases())
        self._add(AliasChange, self._changes())
        models = [self._model(number) for number in range(COMPARISONS)]
        for table, rows in comparison_rows(self._project.id, self._base, models).items():
            self._add(table, rows)
        self._add(Usage, self._usage())
        self._add(AliasUsage, (row | {"alias": _alias(0)} for row in self._usage()))
        return Made(self._model(0), logged)

    def steps(self, job: str, total: int) -> Iterator[dict[str, Any]]:
        """Yields a log's lines, as a trainer writes them."""
        for number in range(1, total + 1):
            yield {
                "job_id": job,
                "level": "info",
                "type": "metrics",
                "message": f"Step {number}/{total}",
                "data": step_metrics(self._random, number, total),
                "created_at": self._now - total + number,
            }

    def _add(self, table: type[Base], rows: Rows) -> None:
        left = iter(rows)
        while some := list(islice(left, _AT_ONCE)):
            self._session.execute(insert(table), some)

    def _files(self) -> Iterator[dict[str, Any]]:
        for number in range(200):
            yield {
                "id": f"file-{number:04}",
                "project_id": self._project.id,
                "filename": f"team-{number}-answers.jsonl",
                "purpose": "fine-tune",
                "bytes": 1_000_000,
                "sha256": f"{number:064}",
                "storage_key": f"objects/none/{number:04}",
                "examples": 1_800,
                "status": "processed",
                "created_at": self._now - 400 * _DAY + number,
            }

    def _jobs(self) -> Iterator[dict[str, Any]]:
        for number in range(JOBS - 2):
            status = (
                "succeeded" if number < MODELS else self._random.choice(("succeeded", "failed", "cancelled"))
            )
            yield self._job(_job(number), status, self._now - 3600 - number * 1000) | {
                "suffix": f"team-{number % ALIASES}",
                "fine_tuned_model": self._model(number) if number < MODELS else None,
                "recorded_step": _LOGGED_STEPS if number < _LOGGED_JOBS else 0,
                "error": {"code": "server_error", "message": "The worker died.", "param": None}
                if status == "failed"
                else None,
            }
        for id_, steps, suffix in ((LONG, LONG_STEPS, "long"), (LIVE, 500, "live")):
            yield self._job(id_, "running", self._now - 600) | {
                "suffix": suffix,
                "fine_tuned_model": None,
                "recorded_step": steps,
                "error": None,
            }

    def _job(self, id_: str, status: str, at: float) -> dict[str, Any]:
        is_running = status == "running"
        return {
            "id": id_,
            "project_id": self._project.id,
            "status": status,
            "model": self._base,
            "training_file_id": f"file-{self._random.randrange(200):04}",
            "seed": 1,
            "method": "supervised",
            "hyperparameters": {"n_epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "lora_rank": 16},
            "created_at": at,
            "started_at": at + 5,
            "finished_at": None if is_running else at + 500,
            "trained_tokens": None if is_running else 120_000,
            "lease_epoch": 1,
            "lease_until": self._now + _DAY if is_running else None,
            "worker_id": "worker_benchmark" if is_running else None,
        }

    def _adapters(self) -> Iterator[dict[str, Any]]:
        for number in range(MODELS):
            for name in (self._model(number), f"{self._model(number)}:ckpt-step-25"):
                yield {
                    "name": name,
                    "project_id": self._project.id,
                    "job_id": _job(number),
                    "base_model": self._base,
                    "storage_key": f"jobs/{_job(number)}/final",
                    "bytes": 9_871_234,
                    "created_at": self._now - 3000 - number * 1000,
                }

    def _checkpoints(self) -> Iterator[dict[str, Any]]:
        for number in range(MODELS):
            yield {
                "job_id": _job(number),
                "step_number": 25,
                "fine_tuned_model_checkpoint": f"{self._model(number)}:ckpt-step-25",
                "metrics": {"step": 25, "train_loss": 0.9, "full_valid_loss": 1.0},
            }

    def _aliases(self) -> Iterator[dict[str, Any]]:
        for number in range(ALIASES):
            yield {
                "id": f"alias_{number:04}",
                "project_id": self._project.id,
                "name": _alias(number),
                "split": [{"model": self._model(number), "weight": 1.0}],
                "version": 5,
                "created_at": self._now - 30 * _DAY,
                "updated_at": self._now - 2 * _DAY,
            }

    def _changes(self) -> Iterator[dict[str, Any]]:
        for number in range(ALIASES):
            for version in range(1, 6):
                before, after = (
                    self._model(number + ALIASES * (4 - each)) for each in (version - 2, version - 1)
                )
                yield {
                    "alias_id": f"alias_{number:04}",
                    "version": version,
                    "kind": "created" if version == 1 else "set",
                    "key_id": self._key.id,
                    "split_before": [] if version == 1 else [{"model": before, "weight": 1.0}],
                    "split_after": [{"model": after, "weight": 1.0}],
                    "created_at": self._now - (30 - 5 * version) * _DAY,
                }

    def _usage(self) -> Iterator[dict[str, Any]]:
        first = int(self._now) // 60 * 60 - _MINUTES * 60
        for minute in range(0, _MINUTES, 5):
            for number in range(20):
                yield {
                    "project_id": self._project.id,
                    "minute": first + minute * 60,
                    "model": self._model(number),
                    "requests": 1 + number,
                    "input_tokens": 900,
                    "output_tokens": 300,
                }

    def _model(self, number: int) -> str:
        return f"ft:{self._base}:{self._project.name}:team-{number % ALIASES}:m{number:06}"


def step_metrics(random_: random.Random, number: int, total: int) -> dict[str, Any]:
    """Returns what a step's line says: noisy losses that fall, every tenth with validation."""
    part = number / total
    loss = 0.35 + 2 * math.exp(-4 * part)
    metrics = {
        "step": number,
        "total_steps": total,
        "train_loss": loss + random_.gauss(0, 0.06),
        "train_mean_token_accuracy": 0.92 - 0.5 * math.exp(-4 * part) + random_.gauss(0, 0.02),
        "epoch": 1,
        "learning_rate": 5e-4 * (1 - part),
        "trained_tokens": number * 700,
        "elapsed_seconds": number * 0.9,
    }
    if number % 10 == 0:
        metrics |= {"valid_loss": loss + 0.1, "valid_mean_token_accuracy": 0.8 - 0.3 * math.exp(-4 * part)}
    return metrics


def build(database: Database, base: str) -> Made:
    """Adds the rows to the first project."""
    with database.writer() as session:
        return Builder(session, base).build()


def _job(number: int) -> str:
    return f"ftjob-{number:06}"


def _alias(number: int) -> str:
    return f"team-{number}:production"
