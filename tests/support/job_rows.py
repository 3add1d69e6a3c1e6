"""Rows that adapters hang from."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.auth.models import Project
from app.files.models import File
from app.fine_tuning.models import FineTuningJob
from tests.support.service import BASE_MODEL


def add_job(session: Session) -> None:
    """A succeeded job `ftjob-t` of the project `proj_t`."""
    session.add(Project(id="proj_t", name="t", title="t"))
    session.flush()
    file = {"filename": "t.jsonl", "purpose": "fine-tune", "bytes": 1, "sha256": "0", "storage_key": "t"}
    session.add(File(id="file-t", project_id="proj_t", **file))
    session.flush()
    job = {"status": "succeeded", "method": "supervised", "hyperparameters": {}, "seed": 1}
    keys = {"project_id": "proj_t", "training_file_id": "file-t", "model": BASE_MODEL}
    session.add(FineTuningJob(id="ftjob-t", **keys, **job))
    session.flush()
