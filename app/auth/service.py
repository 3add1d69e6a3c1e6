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


def authenticate(session: Session, secret: str | None) -> ApiKey:
    """Return the API key with that secret.

    Raises:
        AuthenticationError: there is no secret, no key has it, or the key was revoked.
    """
    if not secret:
        raise AuthenticationError(
            "No API key: send it as 'Authorization: Bearer <key>'. "
            "`toque keys create` makes one; `toque serve` printed the first.",
            code="invalid_api_key",
        )
    known = select(ApiKey).where(ApiKey.key_sha256 == _digest(secret), ApiKey.revoked_at.is_(None))
    key = session.scalar(known)
    if key is None:
        raise AuthenticationError(
            "The API key is not valid, or was revoked.", code="invalid_api_key", is_rejected=True
        )
    return key


def create_project(session: Session, name: str) -> Project:
    """Return the project of that name, and create it if there is none.

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
    """Create a key. Returns it with its secret, which is not kept and cannot be shown again."""
    secret = secret or "sk-toque-" + secrets.token_urlsafe(32)
    key = ApiKey(project_id=project_id, name=name, key_sha256=_digest(secret), hint=secret[-4:])
    session.add(key)
    session.flush()
    return key, secret


def ensure_first_key(session: Session, secret: str | None) -> str | None:
    """Make sure that the first project has a key: the given one or, if no key exists at all, a new one.

    Returns:
        The secret of the new key; None if the secret was given or a key existed.
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
    """Return every key with its project, oldest first."""
    rows = session.execute(select(ApiKey, Project).join(Project).order_by(ApiKey.created_at))
    return [(key, project) for key, project in rows]


def revoke_key(session: Session, key_id: str) -> ApiKey:
    """Revoke a key; one that was revoked before keeps its time.

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
