"""Rules on models: how an adapter gets its name, is found by it, and ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.adapters.models import Adapter
from app.auth.models import Project
from app.base_models import find_base_model
from app.errors import PermissionDeniedError
from app.fine_tuning import queue
from app.fine_tuning.models import FineTuningJob
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can be asked: its served name, and the base whose engine holds it."""

    name: str
    base_model: str
    is_base: bool


def fine_tuned_model_name(session: Session, job: FineTuningJob) -> str:
    """`ft:<base>:<project>:<suffix>:<id>`, unique for ever because the job's id is."""
    project = session.get_one(Project, job.project_id)
    return f"ft:{job.model}:{project.name}:{job.suffix or ''}:{job.id.removeprefix('ftjob-')}"


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


def resolve_model(session: Session, settings: Settings, project_id: str, name: str) -> ServedModel:
    """What a request's `model` stands for.

    Raises:
        NotFoundError: no base model, adapter or checkpoint of this project has that name.
    """
    adapter = _find_adapter(session, project_id, name)
    if adapter is not None:
        return ServedModel(adapter.name, adapter.base_model, is_base=False)
    base = find_base_model(settings, name)
    return ServedModel(base.name, base.name, is_base=True)


def get_adapter(session: Session, settings: Settings, project_id: str, name: str) -> Adapter | None:
    """The project's adapter of that name; None where the name is a base model's.

    Raises:
        NotFoundError: it is neither.
    """
    adapter = _find_adapter(session, project_id, name)
    if adapter is None:
        find_base_model(settings, name)
    return adapter


def list_adapters(session: Session, project_id: str) -> Sequence[Adapter]:
    """The project's adapters and checkpoints, newest first."""
    query = select(Adapter).where(Adapter.project_id == project_id, Adapter.deleted_at.is_(None))
    return session.scalars(query.order_by(Adapter.created_at.desc(), Adapter.name.desc())).all()


def delete_adapter(session: Session, settings: Settings, project_id: str, name: str) -> Adapter:
    """Ends a model: it is found no more, and its name is never given to another.

    Raises:
        NotFoundError: no such model.
        PermissionDeniedError: it is a base model.
    """
    adapter = get_adapter(session, settings, project_id, name)
    if adapter is None:
        raise PermissionDeniedError(
            f"'{name}' is a base model; the catalogue (TOQUE_BASE_MODELS) says which there are.",
            code="base_model_not_deletable",
            param="model",
        )
    adapter.deleted_at = time.time()
    return adapter


def find_servable(session: Session, base_model: str, name: str) -> Adapter | None:
    """The adapter that an engine of that base is asked for by its served name, of any project."""
    query = select(Adapter).where(
        Adapter.name == name, Adapter.base_model == base_model, Adapter.deleted_at.is_(None)
    )
    return session.scalar(query)


def _find_adapter(session: Session, project_id: str, name: str) -> Adapter | None:
    query = select(Adapter).where(
        Adapter.name == name, Adapter.project_id == project_id, Adapter.deleted_at.is_(None)
    )
    return session.scalar(query)


def _add_adapter(session: Session, job: FineTuningJob, name: str, storage_key: str) -> None:
    if session.get(Adapter, name) is None:
        session.add(
            Adapter(
                name=name,
                project_id=job.project_id,
                job_id=job.id,
                base_model=job.model,
                storage_key=storage_key,
            )
        )
