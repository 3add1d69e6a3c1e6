"""Administration of a deployment: its projects, their service accounts, and the keys of those."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Sequence
from itertools import chain, count

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from app.auth import service as auth_service
from app.auth.models import ApiKey, Project, ServiceAccount
from app.auth.service import get_key, get_project
from app.core.errors import InvalidRequestError, NotFoundError
from app.core.pagination import fetch_page
from app.organization.schemas import CreateKey, CreateServiceAccount
from app.webhooks import service as webhooks_service

_LONGEST_SLUG = 24


def create_project(session: Session, title: str) -> Project:
    """Create a project. Its models are named after its title, with a number if another's are already.

    Raises:
        InvalidRequestError: the title is empty or too long, or has control characters.
    """
    auth_service.check_name(title)
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain)[:_LONGEST_SLUG].strip("-") or "project"
    taken = set(session.scalars(select(Project.name).where(Project.name.startswith(slug, autoescape=True))))
    names = chain([slug], (f"{slug}-{number}" for number in count(2)))
    project = Project(name=next(name for name in names if name not in taken), title=title)
    session.add(project)
    session.flush()
    return project


def list_projects(
    session: Session, *, include_archived: bool, after: str | None, limit: int
) -> tuple[Sequence[Project], bool]:
    """Return projects, newest first, and whether more follow.

    Raises:
        InvalidRequestError: `after` is none of them.
    """
    query = select(Project)
    if not include_archived:
        query = query.where(Project.archived_at.is_(None))
    key = (Project.created_at, Project.id)
    return fetch_page(session, query, key, identity=Project.id, after=after, limit=limit)


def update_project(session: Session, project_id: str, title: str | None) -> Project:
    """Give a project another title, if there is one; the names of its models stay.

    Raises:
        NotFoundError, InvalidRequestError: as `get_project`.
    """
    project = get_project(session, project_id, to_change=True)
    project.title = project.title if title is None else title
    return project


def archive_project(session: Session, project_id: str) -> Project:
    """Archive a project: its keys end, its webhooks are sent no more, and what it has stays.

    One that was archived before keeps its time.

    Raises:
        NotFoundError: it does not exist.
        InvalidRequestError: it is the first project, which TOQUE_API_KEY belongs to.
    """
    project = get_project(session, project_id)
    if project.name == auth_service.FIRST_PROJECT:
        raise InvalidRequestError(
            "The first project cannot be archived: TOQUE_API_KEY belongs to it.",
            code="default_project",
            param="project_id",
        )
    if project.archived_at is None:
        project.archived_at = time.time()
        webhooks_service.disable_endpoints(session, project.id, "The project was archived.")
    return project


def create_service_account(
    session: Session, project_id: str, request: CreateServiceAccount
) -> tuple[ServiceAccount, ApiKey, str]:
    """Create a service account.

    Returns:
        The account, its key, and the key's secret, which cannot be shown again.

    Raises:
        NotFoundError: the project does not exist.
        InvalidRequestError: the project is archived, or the key's role cannot be limited to models.
    """
    project = get_project(session, project_id, to_change=True)
    account = ServiceAccount(project_id=project.id, name=request.name)
    session.add(account)
    session.flush()
    key, secret = _create_key(session, account, request, request.name)
    return account, key, secret


def list_service_accounts(
    session: Session, project_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[ServiceAccount], bool]:
    """Return a project's service accounts, newest first, and whether more follow.

    Raises:
        NotFoundError: the project does not exist.
        InvalidRequestError: `after` is none of them.
    """
    query = select(ServiceAccount).where(
        ServiceAccount.project_id == get_project(session, project_id).id, ServiceAccount.deleted_at.is_(None)
    )
    key = (ServiceAccount.created_at, ServiceAccount.id)
    return fetch_page(session, query, key, identity=ServiceAccount.id, after=after, limit=limit)


def get_service_account(session: Session, project_id: str, account_id: str) -> ServiceAccount:
    """Return a service account of a project.

    Raises:
        NotFoundError: the project does not exist, or has no such service account.
    """
    get_project(session, project_id)
    account = session.get(ServiceAccount, account_id)
    if account is None or account.project_id != project_id or account.deleted_at is not None:
        raise NotFoundError(
            f"No service account '{account_id}' in this project.",
            code="service_account_not_found",
            param="service_account_id",
        )
    return account


def delete_service_account(session: Session, project_id: str, account_id: str) -> None:
    """Delete a service account, and revoke its keys.

    Raises:
        NotFoundError: the project does not exist, or has no such service account.
    """
    account = get_service_account(session, project_id, account_id)
    now = account.deleted_at = time.time()
    keys = select(ApiKey).where(ApiKey.service_account_id == account.id, ApiKey.revoked_at.is_(None))
    for key in session.scalars(keys):  # one by one, so that each is in the audit log
        key.revoked_at = now


def create_key(session: Session, project_id: str, account_id: str, request: CreateKey) -> tuple[ApiKey, str]:
    """Create one more key of a service account.

    Returns:
        The key and its secret, which cannot be shown again.

    Raises:
        NotFoundError: the project does not exist, or has no such service account.
        InvalidRequestError: the project is archived, or the key's role cannot be limited to models.
    """
    get_project(session, project_id, to_change=True)
    account = get_service_account(session, project_id, account_id)
    return _create_key(session, account, request, request.name or account.name)


def _create_key(
    session: Session, account: ServiceAccount, request: CreateKey | CreateServiceAccount, name: str
) -> tuple[ApiKey, str]:
    lifetime = request.expires_in_seconds
    return auth_service.create_key(
        session,
        account.project_id,
        name,
        role=request.role,
        models=request.models,
        expires_at=None if lifetime is None else time.time() + lifetime,
        account=account,
    )


def list_keys(
    session: Session, project_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[ApiKey], bool]:
    """Return a project's keys, newest first and without those that were deleted, and whether more follow.

    Raises:
        NotFoundError: the project does not exist.
        InvalidRequestError: `after` is none of them.
    """
    query = (
        select(ApiKey)
        .where(ApiKey.project_id == get_project(session, project_id).id, ApiKey.revoked_at.is_(None))
        .options(joinedload(ApiKey.service_account), joinedload(ApiKey.project))
    )
    key = (ApiKey.created_at, ApiKey.id)
    return fetch_page(session, query, key, identity=ApiKey.id, after=after, limit=limit)


def let_expire(session: Session, project_id: str, key_id: str, seconds: int) -> ApiKey:
    """Let a key expire in so many seconds.

    Raises:
        NotFoundError: the project does not exist, or has no such key.
        InvalidRequestError: the key has expired, and stays so, or the project is archived.
    """
    get_project(session, project_id, to_change=True)
    key = get_key(session, project_id, key_id)
    now = time.time()
    if key.expires_at is not None and key.expires_at <= now:
        raise InvalidRequestError(
            "The API key has expired; create a new one.", code="api_key_expired", param="api_key_id"
        )
    key.expires_at, key.lifetime_seconds = now + seconds, now + seconds - key.created_at
    return key


def delete_key(session: Session, project_id: str, key_id: str) -> None:
    """Revoke a key for good.

    Raises:
        NotFoundError: the project does not exist, or has no such key.
    """
    auth_service.revoke_key(session, get_key(session, project_id, key_id).id)
