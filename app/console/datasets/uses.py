"""What uses a file: told before it is deleted."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.batches.models import Batch
from app.comparisons.models import Comparison
from app.fine_tuning.models import FineTuningJob

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Uses:
    """The newest that use a file, by their ids."""

    jobs: list[str]
    comparisons: list[str]
    batches: list[str]

    @property
    def any(self) -> bool:
        """Whether anything uses it."""
        return bool(self.jobs or self.comparisons or self.batches)


def uses_of(session: Session, project_id: str, file_id: str) -> Uses:
    """Return a few of those that use the project's file."""
    job, comparison, batch = FineTuningJob, Comparison, Batch
    jobs = select(job.id).where(
        job.project_id == project_id,
        or_(job.training_file_id == file_id, job.validation_file_id == file_id),
    )
    comparisons = select(comparison.id).where(
        comparison.project_id == project_id,
        or_(comparison.file_id == file_id, comparison.regression_file_id == file_id),
    )
    batches = select(batch.id).where(batch.project_id == project_id, batch.input_file_id == file_id)
    return Uses(
        list(session.scalars(jobs.order_by(job.created_at.desc()).limit(_SHOWN))),
        list(session.scalars(comparisons.order_by(comparison.created_at.desc()).limit(_SHOWN))),
        list(session.scalars(batches.order_by(batch.created_at.desc()).limit(_SHOWN))),
    )
