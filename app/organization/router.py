"""`/v1/organization/projects`: OpenAI's administration API, for keys with the role `admin`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from app.auth import service as auth_service
from app.core.errors import ERROR_RESPONSES
from app.core.pagination import Page
from app.dependencies import IdempotentRequestDep, ReadSession, WriteSession, bearer
from app.organization import service
from app.organization.schemas import (
    CreateKey,
    CreateProject,
    CreateServiceAccount,
    KeyDeleted,
    KeyObject,
    NewKeyObject,
    NewServiceAccountObject,
    ProjectObject,
    ServiceAccountDeleted,
    ServiceAccountObject,
    UpdateKey,
    UpdateProject,
)

router = APIRouter(
    prefix="/v1/organization/projects",
    tags=["Administration"],
    responses=ERROR_RESPONSES,
    dependencies=[Depends(bearer)],
)

Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("")
def create_project(
    body: CreateProject, creating: IdempotentRequestDep, session: WriteSession
) -> ProjectObject:
    """Creates a project. A retry creates no second one."""
    project = creating.once(
        session,
        "project",
        body.model_dump(),
        find=partial(auth_service.get_project, session),
        create=partial(service.create_project, session, body.name),
    )
    return ProjectObject.of(project)


@router.get("")
def list_projects(
    session: ReadSession, include_archived: bool = False, after: str | None = None, limit: Limit = 20
) -> Page[ProjectObject]:
    """The deployment's projects, newest first."""
    projects, has_more = service.list_projects(
        session, include_archived=include_archived, after=after, limit=limit
    )
    return Page[ProjectObject].of([ProjectObject.of(each) for each in projects], has_more)


@router.get("/{project_id}")
def retrieve_project(project_id: str, session: ReadSession) -> ProjectObject:
    """One project."""
    return ProjectObject.of(auth_service.get_project(session, project_id))


@router.post("/{project_id}")
def update_project(project_id: str, body: UpdateProject, session: WriteSession) -> ProjectObject:
    """Gives a project another name; its models keep theirs."""
    return ProjectObject.of(service.update_project(session, project_id, body.name))


@router.post("/{project_id}/archive")
def archive_project(project_id: str, session: WriteSession) -> ProjectObject:
    """Archives a project: its keys are refused within three seconds, and what it has stays."""
    return ProjectObject.of(service.archive_project(session, project_id))


@router.post("/{project_id}/service_accounts")
def create_service_account(
    project_id: str, body: CreateServiceAccount, session: WriteSession
) -> NewServiceAccountObject:
    """Creates a service account with a key, whose value is shown this once."""
    return NewServiceAccountObject.with_key(*service.create_service_account(session, project_id, body))


@router.get("/{project_id}/service_accounts")
def list_service_accounts(
    project_id: str, session: ReadSession, after: str | None = None, limit: Limit = 20
) -> Page[ServiceAccountObject]:
    """The project's service accounts, newest first."""
    accounts, has_more = service.list_service_accounts(session, project_id, after=after, limit=limit)
    return Page[ServiceAccountObject].of([ServiceAccountObject.of(each) for each in accounts], has_more)


@router.get("/{project_id}/service_accounts/{service_account_id}")
def retrieve_service_account(
    project_id: str, service_account_id: str, session: ReadSession
) -> ServiceAccountObject:
    """One service account."""
    return ServiceAccountObject.of(service.get_service_account(session, project_id, service_account_id))


@router.delete("/{project_id}/service_accounts/{service_account_id}")
def delete_service_account(
    project_id: str, service_account_id: str, session: WriteSession
) -> ServiceAccountDeleted:
    """Deletes a service account with all of its keys."""
    service.delete_service_account(session, project_id, service_account_id)
    return ServiceAccountDeleted(id=service_account_id)


@router.post("/{project_id}/service_accounts/{service_account_id}/api_keys")
def create_key(
    project_id: str, service_account_id: str, body: CreateKey, session: WriteSession
) -> NewKeyObject:
    """Creates one more key of a service account, whose value is shown this once."""
    return NewKeyObject.of(*service.create_key(session, project_id, service_account_id, body))


@router.get("/{project_id}/api_keys")
def list_keys(
    project_id: str, session: ReadSession, after: str | None = None, limit: Limit = 20
) -> Page[KeyObject]:
    """The project's keys, newest first."""
    keys, has_more = service.list_keys(session, project_id, after=after, limit=limit)
    return Page[KeyObject].of([KeyObject.of(each) for each in keys], has_more)


@router.get("/{project_id}/api_keys/{api_key_id}")
def retrieve_key(project_id: str, api_key_id: str, session: ReadSession) -> KeyObject:
    """One key."""
    return KeyObject.of(auth_service.get_key(session, project_id, api_key_id))


@router.post("/{project_id}/api_keys/{api_key_id}")
def update_key(project_id: str, api_key_id: str, body: UpdateKey, session: WriteSession) -> KeyObject:
    """Lets a key expire at another time, for example once its successor is in use."""
    return KeyObject.of(service.let_expire(session, project_id, api_key_id, body.expires_in_seconds))


@router.delete("/{project_id}/api_keys/{api_key_id}")
def delete_key(project_id: str, api_key_id: str, session: WriteSession) -> KeyDeleted:
    """Revokes a key, within three seconds and for good."""
    service.delete_key(session, project_id, api_key_id)
    return KeyDeleted(id=api_key_id)
