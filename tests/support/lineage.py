"""A model's whole lineage as rows: data, jobs, checkpoints, models that continue others, an import."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.auth.models import Project
from app.core.database import Database
from app.files.models import File
from app.fine_tuning.models import FineTuningJob
from app.models.adapters.models import Adapter
from tests.support.comparison_results import add_comparison, candidate, pair, regression, results
from tests.support.service import BASE_MODEL

PARITY = {"tokens": 412, "distance": 0.0031, "base_distance": 0.0029, "effect": 0.41, "tolerance": 0.02}


@dataclass(frozen=True)
class Lineage:
    """The served names, and the id of a comparison in which `second` is 39 points ahead of the best prompt
    and 4 points, which chance may explain, ahead of `first`."""

    first: str
    second: str
    imported: str
    broken: str
    comparison: str

    def checkpoint(self, step: int) -> str:
        """The name of a checkpoint of the second model's job."""
        return f"{self.second}:ckpt-step-{step}"


def add_lineage(database: Database, project: str = "default", label: str = "house-style") -> Lineage:
    with database.writer() as session:
        rows = _Rows(session, project)
        training = rows.file(f"{label}-answers.jsonl", 1840)
        validation = rows.file(f"{label}-held-out.jsonl", 200)
        first, second = f"{label}:a1", f"{label}-v2:b2"
        job = rows.job(f"ftjob-{project}-a", label, training, validation_file_id=validation)
        for step in (20, 40):
            rows.adapter(f"{first}:ckpt-step-{step}", job, age=900_000 - step)
        first = rows.adapter(first, job, age=800_000, parity=PARITY)
        split = {"share": 0.1, "seed": 1, "examples": 1656, "held_out": 184}
        job = rows.job(f"ftjob-{project}-b", f"{label}-v2", training, parent=first, validation_split=split)
        for step in range(25, 226, 25):
            rows.adapter(f"{second}:ckpt-step-{step}", job, parent=first, age=90_000 - step)
        second = rows.adapter(second, job, parent=first, age=80_000, parity=PARITY)
        imported = rows.adapter("imported-tone:c3", None, age=70_000, probed_at=time.time())
        broken = rows.adapter("broken:d4", None, age=60_000, quarantine_reason="lora_B has NaN")
    found = results(
        [
            candidate("base", "base", score=0.21),
            candidate("8 examples", "few_shot", score=0.47),
            candidate("tuned", model=second, score=0.86, median=1.1),
            candidate("older", model=first, score=0.82),
        ],
        [
            pair("tuned", "base", 0.65),
            pair("tuned", "8 examples", 0.39, margin=0.09),
            pair("tuned", "older", 0.04, margin=0.06, p=0.2),
        ],
        [regression("tuned", 0.01)],
    )
    comparison = add_comparison(
        database, found, project, name=f"{label} against prompting", created_at=time.time() - 50_000
    )
    return Lineage(first, second, imported, broken, comparison)


def add_models(database: Database, count: int, project: str = "default") -> None:
    """Many models, each of its own job with a checkpoint, the highest number newest."""
    with database.writer() as session:
        rows = _Rows(session, project)
        training = rows.file("many.jsonl", 100)
        for number in range(count):
            job = rows.job(f"ftjob-{project}-many-{number}", f"many-{number}", training)
            rows.adapter(f"many-{number}:m{number}:ckpt-step-1", job, age=count + 1 - number)
            rows.adapter(f"many-{number}:m{number}", job, age=count - number)


class _Rows:
    def __init__(self, session: Session, project: str) -> None:
        self._session = session
        self._project = session.query(Project).filter_by(name=project).one()
        self._now = time.time()

    def file(self, filename: str, examples: int) -> str:
        row = {"filename": filename, "purpose": "fine-tune", "bytes": 1, "sha256": "", "storage_key": "k"}
        file = File(project_id=self._project.id, examples=examples, **row)
        self._session.add(file)
        self._session.flush()
        return file.id

    def job(self, id_: str, suffix: str, training_file_id: str, **columns: Any) -> str:
        row = {"status": "succeeded", "method": "supervised", "hyperparameters": {"lora_rank": 16}, "seed": 1}
        keys = {"project_id": self._project.id, "training_file_id": training_file_id, "model": BASE_MODEL}
        self._session.add(FineTuningJob(id=id_, suffix=suffix, **keys, **row | columns))
        self._session.flush()
        return id_

    def adapter(self, end: str, job_id: str | None, *, age: float, **columns: Any) -> str:
        name = f"ft:{BASE_MODEL}:{self._project.name}:{end}"
        row = {"base_model": BASE_MODEL, "storage_key": "none", "bytes": 9_871_234}
        keys = {"project_id": self._project.id, "job_id": job_id, "created_at": self._now - age}
        self._session.add(Adapter(name=name, **row | keys | columns))
        self._session.flush()
        return name
