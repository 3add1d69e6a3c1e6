"""Rules on projects and API keys."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session, contains_eager

from app.auth.caller import Caller
from app.auth.models import ApiKey, Project, ServiceAccount
from app.auth.roles import Role
from app.core.errors import AuthenticationError, ConflictError, InvalidRequestError, NotFoundError

FIRST_PROJECT = "default"
_PROJECT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_MOST_MODELS = 100
_NAME = re.compile(r"[^\x00-\x1f]{1,128}")


def find_caller(session: Session, key_sha256: str) -> Caller:
    """Return the caller whose key has this digest; it may have expired, which changes by itself.

    Raises:
        AuthenticationError: no key has it, the key was revoked, its service account was deleted, or its
            project was archived.
    """
    return caller_with(_find_valid_key(session, ApiKey.key_sha256 == key_sha256))


def find_valid_key(session: Session, key_id: str) -> ApiKey:
    """Return the key with this id, which may have expired, with its project.

    Raises:
        AuthenticationError: as for `find_caller`.
    """
    return _find_valid_key(session, ApiKey.id == key_id)


def caller_with(key: ApiKey) -> Caller:
    """Return what a key stands for."""
    models = None if key.models is None else frozenset(key.models)
    return Caller(key.project_id, key.id, key.role, models, key.expires_at)


def _find_valid_key(session: Session, condition: ColumnElement[bool]) -> ApiKey:
    found = session.execute(
        select(ApiKey, ServiceAccount.deleted_at)
        .join_from(ApiKey, ServiceAccount)
        .join(ApiKey.project)
        .options(contains_eager(ApiKey.project))
        .where(condition)
    ).one_or_none()
    if found is None:
        raise invalid_key()
    key, deleted_at = found
    if key.revoked_at is not None or deleted_at is not None:
        raise invalid_key()
    if key.project.archived_at is not None:
        raise _refused("The project of this API key is archived.")
    return key


def no_key() -> AuthenticationError:
    """Return the error of a request without a key."""
    return AuthenticationError(
        "No API key: send it as 'Authorization: Bearer <key>'. "
        "`toque keys create` makes one; `toque serve` printed the first.",
        code="invalid_api_key",
    )


def invalid_key() -> AuthenticationError:
    """Return the error of a request with a key that there is not, or not any more."""
    return _refused("The API key is not valid, or was revoked.")


def expired_key() -> AuthenticationError:
    """Return the error of a request with a key whose time is over."""
    return _refused("The API key has expired; ask for a new one.")


def _refused(message: str) -> AuthenticationError:
    return AuthenticationError(message, code="invalid_api_key", is_rejected=True)


def lock_projects(session: Session, project_ids: Collection[str]) -> set[str]:
    """Return which of the projects there are, and keep them from being deleted until the transaction ends."""
    there = select(Project.id).where(Project.id.in_(project_ids))
    return set(session.scalars(there.with_for_update(read=True, key_share=True)))


def create_project(session: Session, name: str) -> Project:
    """Return the project of that name, and create it if there is none.

    Raises:
        InvalidRequestError: the name cannot be part of a model's name.
        ConflictError: the project is archived.
    """
    if not _PROJECT_NAME.fullmatch(name):
        raise InvalidRequestError(
            "A project's name has 1 to 32 lower-case letters, digits and dashes.",
            code="invalid_value",
            param="project",
        )
    found = session.scalar(select(Project).where(Project.name == name))
    if found is None:
        found = Project(name=name, title=name)
        session.add(found)
        session.flush()
    if found.archived_at is not None:
        raise ConflictError(f"The project '{name}' is archived.", code="project_archived")
    return found


def get_project(session: Session, project_id: str, *, to_change: bool = False) -> Project:
    """Return a project.

    Raises:
        NotFoundError: it does not exist.
        InvalidRequestError: it is to be changed, and is archived.
    """
    project = session.get(Project, project_id, with_for_update={"key_share": True} if to_change else None)
    if project is None:
        raise NotFoundError(f"No project '{project_id}'.", code="project_not_found", param="project_id")
    if to_change and project.archived_at is not None:
        raise InvalidRequestError(
            "The project is archived, and cannot be changed any more.",
            code="project_archived",
            param="project_id",
        )
    return project


def create_key(
    session: Session,
    project_id: str,
    name: str,
    secret: str | None = None,
    *,
    role: Role = "project",
    models: Sequence[str] | None = None,
    expires_at: float | None = None,
    account: ServiceAccount | None = None,
) -> tuple[ApiKey, str]:
    """Create a key, with a service account of its own unless one is given.

    Returns:
        The key with its secret, which is not kept and cannot be shown again.

    Raises:
        InvalidRequestError: a list of models was given to a role that reaches models in other ways, or it or
            the name is empty, or too long.
    """
    check_models(role, models)
    check_name(name)
    if account is None:
        account = ServiceAccount(project_id=project_id, name=name)
        session.add(account)
        session.flush()
    secret = secret or "sk-toque-" + secrets.token_urlsafe(32)
    now = time.time()
    key = ApiKey(
        project_id=project_id,
        service_account_id=account.id,
        name=name,
        key_sha256=digest(secret),
        hint=secret[-4:],
        role=role,
        models=None if models is None else sorted(set(models)),
        created_at=now,
        lifetime_seconds=None if expires_at is None else expires_at - now,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, secret


def check_name(name: str) -> None:
    """Make sure that a key, a service account or a project can be called this.

    Raises:
        InvalidRequestError: it is empty or too long, or has control characters.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(
            "A name has 1 to 128 characters, and no control characters.",
            code="invalid_value",
            param="name",
        )


def check_models(role: Role, models: Sequence[str] | None) -> None:
    """Make sure that a key with this role may be limited to these models.

    Raises:
        InvalidRequestError: it may not, or there are none or too many.
    """
    if models is None:
        return
    if role != "inference":
        raise InvalidRequestError(
            "Only a key with the role 'inference' can be limited to models: the others reach models in other "
            "ways, too, such as batches and comparisons.",
            code="invalid_value",
            param="models",
        )
    if not 0 < len(models) <= _MOST_MODELS:
        raise InvalidRequestError(
            f"A key is limited to 1 to {_MOST_MODELS} models and aliases.",
            code="invalid_value",
            param="models",
        )


def ensure_first_key(session: Session, secret: str | None) -> str | None:
    """Make sure that the first project has a key: the given one or, if no key exists at all, a new one.

    It has the role `admin`; a key that exists keeps its role.

    Returns:
        The secret of the new key; None if the secret was given or a key existed.
    """
    project = create_project(session, FIRST_PROJECT)
    if secret is not None:
        if session.scalar(select(ApiKey).where(ApiKey.key_sha256 == digest(secret))) is None:
            create_key(session, project.id, "TOQUE_API_KEY", secret, role="admin")
        return None
    if session.scalar(select(ApiKey).where(ApiKey.revoked_at.is_(None)).limit(1)) is not None:
        return None
    return create_key(session, project.id, "first key", role="admin")[1]


def lacks_admin(session: Session) -> bool:
    """Return whether there are valid keys, but none with the role `admin`."""
    is_valid = ApiKey.revoked_at.is_(None) & or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > time.time())
    roles = session.scalars(select(ApiKey.role).where(is_valid).distinct()).all()
    return bool(roles) and "admin" not in roles


def list_keys(session: Session) -> Sequence[tuple[ApiKey, Project]]:
    """Return every key with its project, oldest first."""
    rows = session.execute(select(ApiKey, Project).join(Project).order_by(ApiKey.created_at))
    return [(key, project) for key, project in rows]


def get_key(session: Session, project_id: str, key_id: str) -> ApiKey:
    """Return a key of a project.

    Raises:
        NotFoundError: the project does not exist, or has no such key.
    """
    get_project(session, project_id)
    key = session.get(ApiKey, key_id)
    if key is None or key.project_id != project_id or key.revoked_at is not None:
        raise NotFoundError(
            f"No API key '{key_id}' in this project.", code="api_key_not_found", param="api_key_id"
        )
    return key


def rotate_key(session: Session, key_id: str, overlap_seconds: float) -> tuple[ApiKey, ApiKey, str]:
    """Make a successor of a key, which then expires once both have been valid for the overlap.

    The successor has the same service account, name, role and models; if the key was to expire, it is valid
    for as long as the key was meant to be.

    Returns:
        The key, its successor, and the successor's secret, which cannot be shown again.

    Raises:
        NotFoundError: no key has that id.
        ConflictError: it was revoked or has expired, or its project is archived.
    """
    key = _get_key_of_any_project(session, key_id, lock=True)
    now = time.time()
    has_expired = key.expires_at is not None and key.expires_at <= now
    if has_expired or key.revoked_at is not None or key.project.archived_at is not None:
        raise ConflictError(f"The key '{key_id}' is not valid any more; create a new one.", code="key_ended")
    successor, secret = create_key(
        session,
        key.project_id,
        key.name,
        role=key.role,
        models=key.models,
        expires_at=None if key.lifetime_seconds is None else now + key.lifetime_seconds,
        account=key.service_account,
    )
    key.expires_at = min(now + overlap_seconds, key.expires_at or float("inf"))
    return key, successor, secret


def revoke_key(session: Session, key_id: str) -> ApiKey:
    """Revoke a key; one that was revoked before keeps its time.

    Raises:
        NotFoundError: no key has that id.
    """
    key = _get_key_of_any_project(session, key_id)
    key.revoked_at = key.revoked_at or time.time()
    return key


def record_uses(session: Session, used_at: Mapping[str, float]) -> None:
    """Record when keys were last used, unless a later use is recorded already."""
    for key_id, at in sorted(used_at.items()):  # two processes must not wait for each other's rows
        earlier = func.coalesce(ApiKey.last_used_at, 0.0) < at
        session.execute(update(ApiKey).where(ApiKey.id == key_id, earlier).values(last_used_at=at))


def _get_key_of_any_project(session: Session, key_id: str, *, lock: bool = False) -> ApiKey:
    key = session.get(ApiKey, key_id, with_for_update={"key_share": True} if lock else None)
    if key is None:
        raise NotFoundError(f"No key '{key_id}'; `toque keys list` shows them.", code="key_not_found")
    return key


def digest(secret: str) -> str:
    """Return what is stored of a secret."""
    # Keys are 256 random bits: a plain hash cannot be searched, and a slow one would only slow requests.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
