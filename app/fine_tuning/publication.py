"""Publishing what a job has trained: its checkpoints while it runs, and its adapter when it succeeds."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.core.lease import Lease
from app.fine_tuning import queue
from app.fine_tuning.models import FineTuningJob
from app.models.adapters import service as adapters_service
from app.models.adapters.models import CHECKPOINT, Adapter


def fine_tuned_model_name(session: Session, job: FineTuningJob) -> str:
    """Return `ft:<base>:<project>:<suffix>:<id>`, which is unique because the job's id is."""
    return adapters_service.served_name(
        session, job.project_id, job.model, job.suffix, job.id.removeprefix("ftjob-")
    )


def publish_checkpoint(
    session: Session,
    job: FineTuningJob,
    lease: Lease,
    *,
    step: int,
    storage_key: str,
    size: int | None = None,
    metrics: dict[str, Any],
) -> str:
    """Record a complete checkpoint of `size` bytes and make it servable, in the caller's transaction.

    Raises:
        LeaseLostError: the attempt has lost its lease.
    """
    name = f"{fine_tuned_model_name(session, job)}{CHECKPOINT}{step}"
    queue.record_checkpoint(session, lease, step=step, name=name, metrics=metrics)
    _add_adapter(session, job, name, storage_key, size)
    return name


def publish_model(
    session: Session,
    job: FineTuningJob,
    lease: Lease,
    *,
    storage_key: str,
    size: int | None = None,
    trained_tokens: int,
    result_file_id: str,
) -> str:
    """Add the adapter, of `size` bytes, and end the job as succeeded, in the caller's transaction.

    Raises:
        LeaseLostError: the attempt has lost its lease.
    """
    name = fine_tuned_model_name(session, job)
    queue.succeed(
        session,
        lease,
        fine_tuned_model=name,
        trained_tokens=trained_tokens,
        result_file_id=result_file_id,
    )
    _add_adapter(session, job, name, storage_key, size)
    return name


def _add_adapter(session: Session, job: FineTuningJob, name: str, storage_key: str, size: int | None) -> None:
    if session.get(Adapter, name) is None:
        session.add(
            Adapter(
                name=name,
                project_id=job.project_id,
                job_id=job.id,
                base_model=job.model,
                parent=job.parent,
                storage_key=storage_key,
                bytes=size,
                quantization="nf4" if job.hyperparameters.get("quantization") == "nf4" else None,
            )
        )
