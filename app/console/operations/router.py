"""The routes of operations: the machines, what is used, and for administrators keys and the audit log."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Form, Query, Response
from sqlalchemy.orm import Session

from app.audit import service as audit_service
from app.audit.schemas import AuditLogQuery
from app.auth import service as auth_service
from app.auth.roles import Action, Role
from app.console.events import topic
from app.console.operations import machines, usage
from app.console.page import Page, PageDep
from app.dependencies import ReadSession, WriteSession
from app.organization import service as organization_service

router = APIRouter(prefix="/console/operations", include_in_schema=False)

_MOST_PROJECTS = 100
_MOST_KEYS = 50
_DAY = 86_400

Days = Annotated[int, Query(ge=1, le=31)]


@router.get("")
def read_machines(page: PageDep, session: ReadSession) -> Response:
    """Show workers, engines and the queue."""
    return page.render("operations/machines.html.jinja", now=machines.read(session, page.context))


@router.get("/machines")
def read_machines_part(page: PageDep, session: ReadSession) -> Response:
    """Show the part of the page that changes."""
    return page.render("operations/_machines.html.jinja", now=machines.read(session, page.context))


@router.get("/usage")
def read_usage(page: PageDep, days: Days = 7) -> Response:
    """Show the page of what the project's models were asked; it then asks for the figures."""
    return page.render("operations/usage.html.jinja", days=days)


@router.get("/usage/figures")
def read_usage_figures(page: PageDep, session: ReadSession, days: Days = 7) -> Response:
    """Show the figures by day and by model, which take a while to add up if there are many models."""
    found = usage.read(session, page.context.project_id, days)
    return page.render("operations/_usage.html.jinja", usage=found, days=days)


@router.get("/keys")
def read_keys(
    page: PageDep, session: ReadSession, project_id: str | None = None, after: str | None = None
) -> Response:
    """Show the keys of a project, for administrators."""
    page.check(Action.ADMINISTER)
    return _keys(page, session, project_id or page.context.project_id, after)


@router.post("/keys")
def create_key(
    page: PageDep,
    session: WriteSession,
    project_id: Annotated[str, Form()],
    name: Annotated[str, Form()] = "",
    role: Annotated[Role, Form()] = "project",
    days: Annotated[int | None, Form(ge=1, le=36_500)] = None,
) -> Response:
    """Create a key, and show it this once."""
    page.check(Action.ADMINISTER)
    auth_service.get_project(session, project_id, to_change=True)
    expires_at = None if days is None else time.time() + days * _DAY
    _, secret = auth_service.create_key(session, project_id, name.strip(), role=role, expires_at=expires_at)
    return _keys(page, session, project_id, None, secret)


@router.post("/keys/{key_id}/revoke")
def revoke_key(
    page: PageDep, session: WriteSession, key_id: str, project_id: Annotated[str, Form()]
) -> Response:
    """Revoke a key for good."""
    page.check(Action.ADMINISTER)
    organization_service.delete_key(session, project_id, key_id)
    return page.redirect(f"/console/operations/keys?project_id={project_id}")


@router.get("/audit")
def read_audit_log(page: PageDep, session: ReadSession, after: str | None = None) -> Response:
    """Show who has changed what, for administrators."""
    page.check(Action.ADMINISTER)
    logs, has_more = audit_service.list_logs(session, AuditLogQuery(after=after, limit=50))
    return page.render("operations/audit.html.jinja", logs=logs, has_more=has_more, after=after)


def _keys(
    page: Page, session: Session, project_id: str, after: str | None, secret: str | None = None
) -> Response:
    keys, has_more = organization_service.list_keys(session, project_id, after=after, limit=_MOST_KEYS)
    projects, _ = organization_service.list_projects(
        session, include_archived=False, after=None, limit=_MOST_PROJECTS
    )
    return page.render(
        "operations/keys.html.jinja",
        project=auth_service.get_project(session, project_id),
        projects=projects,
        keys=keys,
        has_more=has_more,
        secret=secret,
        time=time.time(),
    )


topic("machines", machines.fingerprint)
