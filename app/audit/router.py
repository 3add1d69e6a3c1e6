"""`/v1/organization/audit_logs`, for keys with the role `admin`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from app.audit import service
from app.audit.schemas import AuditLogObject, AuditLogQuery
from app.core.errors import ERROR_RESPONSES
from app.core.pagination import Page
from app.dependencies import ReadSession, bearer

router = APIRouter(
    prefix="/v1/organization/audit_logs",
    tags=["Administration"],
    responses=ERROR_RESPONSES,
    dependencies=[Depends(bearer)],
)


@router.get("")
def list_audit_logs(session: ReadSession, query: Annotated[AuditLogQuery, Query()]) -> Page[AuditLogObject]:
    """Every change in the deployment, newest first: who, what, when, from where, before and after."""
    logs, has_more = service.list_logs(session, query)
    return Page[AuditLogObject].of([AuditLogObject.of(log) for log in logs], has_more)
