"""How what a job has trained becomes a model: checkpoints on the way, the adapter at the end."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.fine_tuning import queue
from app.fine_tuning.models import FineTuningJob
from app.models.adapters import service as adapters_service
from app.models.adapters.models import Adapter


def fine_tuned_model_name(session: Session, job: FineTuningJob) -> str:
    """`ft:<base>:<project>:<suffix>:<id>`, unique for ever because the job's id is."""
    return adapters_service.served_name(
        session, job.project_id, job.model, job.suffix, job.id.removeprefix("ftjob-")
    )


def publish_checkpoint(
    session: Session, job: FineTuningJob, epoch: int, *, step: int, storage_key: str, metrics: dict[str, Any]
) -> str:
    """Records a complete checkpoint and makes it servable, in the caller's transaction.

    Raises:
        queue.LeaseLostError: the attempt no longer owns its job.
    """
    name = f"{fine_tuned_model_name(session, job)}:ckpt-step-{step}"
    queue.record_checkpoint(session, job.id, epoch, step=step, name=name, metrics=metrics)
    _add_adapter(session, job, name, storage_key)
    return name


def publish_model(
    session: Session,
    job: FineTuningJob,
    epoch: int,
    *,
    storage_key: str,
    trained_tokens: int,
    result_file_id: str,
) -> str:
    """The adapter's row and the job's success, in the caller's one transaction.

    Raises:
        queue.LeaseLostError: the attempt no longer owns its job.
    """
    name = fine_tuned_model_name(session, job)
    queue.succeed(
        session,
        job.id,
        epoch,
        fine_tuned_model=name,
        trained_tokens=trained_tokens,
        result_file_id=result_file_id,
    )
    _add_adapter(session, job, name, storage_key)
    return name


def _add_adapter(session: Session, job: FineTuningJob, name: str, storage_key: str) -> None:
    if session.get(Adapter, name) is None:
        session.add(
            Adapter(
                name=name,
                project_id=job.project_id,
                job_id=job.id,
                base_model=job.model,
                parent=job.parent,
                storage_key=storage_key,
            )
        )
