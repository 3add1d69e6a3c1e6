"""Checkpoints that attempts at a job have left in a folder."""

from __future__ import annotations

from pathlib import Path

from app.storage.local import LocalStorage
from workers.training.attempt_files import AttemptFiles, Resumable


def newest_resumable(job_folder: Path, recorded_step: int) -> Resumable:
    """The checkpoint that the next attempt resumes from."""
    with AttemptFiles(LocalStorage(job_folder.parent), job_folder.name, 9) as files:
        return files.newest_resumable(recorded_step)
