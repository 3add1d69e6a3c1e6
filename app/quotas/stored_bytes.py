"""How many bytes a project may store: files, what open uploads have announced, and adapters.

This room is below those that store, so it names their tables by their columns alone.
"""

from __future__ import annotations

import time

from sqlalchemy import BigInteger, Double, String, column, func, or_, select, table
from sqlalchemy.orm import Session

from app.auth.models import Project
from app.core.errors import QuotaExceededError

_FILES = table(
    "files",
    column("project_id", String),
    column("bytes", BigInteger),
    column("deleted_at", Double),
    column("expires_at", Double),
)
_UPLOADS = table(
    "uploads",
    column("project_id", String),
    column("bytes", BigInteger),
    column("status", String),
    column("expires_at", Double),
)
_ADAPTERS = table(
    "adapters",
    column("project_id", String),
    column("bytes", BigInteger),
    column("storage_key", String),
    column("deleted_at", Double),
)


def stored_bytes(session: Session, project_id: str) -> int:
    """Return what the project stores, or has announced that it will."""
    now = time.time()
    files = select(func.sum(_FILES.c.bytes)).where(
        _FILES.c.project_id == project_id,
        _FILES.c.deleted_at.is_(None),
        or_(_FILES.c.expires_at.is_(None), _FILES.c.expires_at > now),
    )
    uploads = select(func.sum(_UPLOADS.c.bytes)).where(
        _UPLOADS.c.project_id == project_id, _UPLOADS.c.status == "pending", _UPLOADS.c.expires_at > now
    )
    # A model and its last checkpoint are one folder.
    folders = (
        select(_ADAPTERS.c.storage_key, _ADAPTERS.c.bytes)
        .where(_ADAPTERS.c.project_id == project_id, _ADAPTERS.c.deleted_at.is_(None))
        .distinct()
        .subquery()
    )
    adapters = select(func.sum(folders.c.bytes))
    return sum(int(session.scalar(part) or 0) for part in (files, uploads, adapters))


def require_bytes(session: Session, project_id: str, added: int, param: str | None = None) -> None:
    """Check that the project may store so many bytes more; what it stores grows by nothing else meanwhile.

    The project's row stays locked until the transaction ends, in the mode that still lets other rows refer to
    it, so that of several uploads at once each counts those before it.

    Raises:
        QuotaExceededError: it may not.
    """
    this = select(Project.max_stored_bytes).where(Project.id == project_id)
    if session.scalar(this) is None:
        return
    most = session.scalar(this.with_for_update(key_share=True))
    session.flush()
    if most is None or (used := stored_bytes(session, project_id)) + added <= most:
        return
    raise QuotaExceededError(
        f"The project stores {used:,} bytes, and may store {most:,}: {added:,} more are too many. Delete "
        "files or models that are not needed, or ask an administrator for more.",
        code="insufficient_quota",
        param=param,
    )
