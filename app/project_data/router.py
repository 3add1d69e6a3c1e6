"""`/v1/organization/projects/{id}/quotas` and `…/retention`, for keys with the role `admin`."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from app.auth.service import get_project
from app.core.errors import ERROR_RESPONSES
from app.dependencies import ReadSession, WriteSession, bearer
from app.project_data import service
from app.project_data.schemas import QuotasObject, Retention, RetentionObject, UpdateQuotas

router = APIRouter(
    prefix="/v1/organization/projects/{project_id}",
    tags=["Administration"],
    responses=ERROR_RESPONSES,
    dependencies=[Depends(bearer)],
)


@router.get("/quotas")
def retrieve_quotas(project_id: str, session: ReadSession) -> QuotasObject:
    """What a project may store and train, and what it does."""
    return service.get_quotas(session, project_id)


@router.post("/quotas")
def update_quotas(project_id: str, body: UpdateQuotas, session: WriteSession) -> QuotasObject:
    """Changes what a project may store and train: null removes a quota, and what is not named stays."""
    return service.update_quotas(session, project_id, body)


@router.get("/retention")
def retrieve_retention(project_id: str, session: ReadSession) -> RetentionObject:
    """For how many days a project's data is kept."""
    return RetentionObject.of(get_project(session, project_id))


@router.post("/retention")
def update_retention(project_id: str, body: Retention, session: WriteSession) -> RetentionObject:
    """Changes for how many days a project's data is kept: null keeps it, and what is not named stays."""
    return RetentionObject.of(service.update_retention(session, project_id, body))
