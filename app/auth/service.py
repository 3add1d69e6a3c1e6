"""Rules on projects and API keys."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.auth.models import ApiKey, Project
from app.core.errors import AuthenticationError, InvalidRequestError, NotFoundError

FIRST_PROJECT = "default"
_PROJECT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def authenticate(session: Session, secret: str | None) -> Project:
    """The project that the key belongs to; raises as `authenticate_key` does."""
    return authenticate_key(session, secret)[1]


def authenticate_key(session: Session, secret: str | None) -> tuple[ApiKey, Project]:
    """The key with that secret, and the project that it belongs to.

    Raises:
        AuthenticationError: no key, an unknown one, or one that was revoked.
    """
    if not secret:
        raise AuthenticationError(
            "No API key: send it as 'Authorization: Bearer <key>'. "
            "`toque keys create` makes one; `toque serve` printed the first.",
            code="invalid_api_key",
        )
    known = select(ApiKey, Project).join(Project).where(ApiKey.key_sha256 == _digest(secret))
    found = session.execute(known.where(ApiKey.revoked_at.is_(None))).one_or_none()
    if found is None:
        raise AuthenticationError("The API key is not valid, or was revoked.", code="invalid_api_key")
    key, project = found
    return key, project


def create_project(session: Session, name: str) -> Project:
    """The project of that name, made if it is not there.

    Raises:
        InvalidRequestError: the name cannot be part of a model's name.
    """
    if not _PROJECT_NAME.fullmatch(name):
        raise InvalidRequestError(
            "A project's name has 1 to 32 lower-case letters, digits and dashes.",
            code="invalid_value",
            param="project",
        )
    found = session.scalar(select(Project).where(Project.name == name))
    if found is None:
        found = Project(name=name)
        session.add(found)
        session.flush()
    return found


def create_key(session: Session, project_id: str, name: str, secret: str | None = None) -> tuple[ApiKey, str]:
    """A new key and its secret, which is not kept and cannot be shown again."""
    secret = secret or "sk-toque-" + secrets.token_urlsafe(32)
    key = ApiKey(project_id=project_id, name=name, key_sha256=_digest(secret), hint=secret[-4:])
    session.add(key)
    session.flush()
    return key, secret


def ensure_first_key(session: Session, secret: str | None) -> str | None:
    """The first project has a key: the given one, or, where there is none at all, a new one.

    Returns:
        The secret of a key made here without one given; else None.
    """
    project = create_project(session, FIRST_PROJECT)
    if secret is not None:
        if session.scalar(select(ApiKey).where(ApiKey.key_sha256 == _digest(secret))) is None:
            create_key(session, project.id, "TOQUE_API_KEY", secret)
        return None
    if session.scalar(select(ApiKey).where(ApiKey.revoked_at.is_(None)).limit(1)) is not None:
        return None
    return create_key(session, project.id, "first key")[1]


def list_keys(session: Session) -> Sequence[tuple[ApiKey, Project]]:
    """Every key with its project, oldest first."""
    rows = session.execute(select(ApiKey, Project).join(Project).order_by(ApiKey.created_at))
    return [(key, project) for key, project in rows]


def revoke_key(session: Session, key_id: str) -> ApiKey:
    """Ends a key; doing so again changes nothing.

    Raises:
        NotFoundError: no key has that id.
    """
    key = session.get(ApiKey, key_id)
    if key is None:
        raise NotFoundError(f"No key '{key_id}'; `toque keys list` shows them.", code="key_not_found")
    key.revoked_at = key.revoked_at or time.time()
    return key


def _digest(secret: str) -> str:
    # Keys are 256 random bits: a plain hash cannot be searched, and a slow one would only slow requests.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
