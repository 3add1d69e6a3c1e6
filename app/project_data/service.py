"""A project's quotas, and how long its data is kept."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.auth.models import Project
from app.auth.service import get_project
from app.fine_tuning.gpu_hours import used_gpu_hours
from app.project_data.schemas import QuotasObject, Retention, UpdateQuotas
from app.quotas.stored_bytes import stored_bytes


def get_quotas(session: Session, project_id: str) -> QuotasObject:
    """Return a project's quotas, and what it uses of them.

    Raises:
        NotFoundError: it does not exist.
    """
    project = get_project(session, project_id)
    return QuotasObject(
        project_id=project.id,
        max_stored_bytes=project.max_stored_bytes,
        stored_bytes=stored_bytes(session, project.id),
        max_gpu_hours=project.max_gpu_hours,
        gpu_hours=round(used_gpu_hours(session, project.id), 4),
    )


def update_quotas(session: Session, project_id: str, request: UpdateQuotas) -> QuotasObject:
    """Change a project's quotas. What it has beyond them stays, but nothing is added.

    Raises:
        NotFoundError: it does not exist.
        InvalidRequestError: it is archived.
    """
    project = get_project(session, project_id, to_change=True)
    for name, value in request.model_dump(exclude_unset=True).items():
        setattr(project, name, value)
    session.flush()
    return get_quotas(session, project_id)


def update_retention(session: Session, project_id: str, request: Retention) -> Project:
    """Change how long a project's data is kept; null keeps it, and kinds that are not named stay as they are.

    Raises:
        NotFoundError: it does not exist.
        InvalidRequestError: it is archived.
    """
    project = get_project(session, project_id, to_change=True)
    days = (project.retention_days or {}) | request.model_dump(exclude_unset=True)
    project.retention_days = {kind: number for kind, number in days.items() if number is not None} or None
    return project
