"""How many bytes a project may store: files, what open uploads have announced, and adapters.

This room is below those that store, so it names their tables by their columns alone.
"""

from __future__ import annotations

import time

from sqlalchemy import BigInteger, Double, String, column, func, or_, select, table
from sqlalchemy.orm import Session

from app.auth.models import Project
from app.core.errors import QuotaExceededError

_DAY_SECONDS = 86_400
"""For so long the bytes of what was deleted stay on the disk."""
_FILES = table(
    "files",
    column("project_id", String),
    column("bytes", BigInteger),
    column("storage_key", String),
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
    if most is None:
        return
    if (used := stored_bytes(session, project_id)) + added <= most:
        _require_little_deleted(session, project_id, most, used + added, param)
        return
    raise QuotaExceededError(
        f"The project stores {used:,} bytes, and may store {most:,}: {added:,} more are too many. Delete "
        "files or models that are not needed, or ask an administrator for more.",
        code="insufficient_quota",
        param=param,
    )


def _require_little_deleted(
    session: Session, project_id: str, most: int, wanted: int, param: str | None
) -> None:
    """Check that on disk, where what was deleted stays for a day, there is no more than twice the quota."""
    waiting = _deleted_bytes(session, project_id)
    if wanted + waiting > 2 * most:
        raise QuotaExceededError(
            f"The project has deleted {waiting:,} bytes within a day, which are still on the disk. With them "
            f"it would have more than twice the {most:,} that it may store: try again tomorrow.",
            code="insufficient_quota",
            param=param,
        )


def _deleted_bytes(session: Session, project_id: str) -> int:
    """Return the bytes of the files and models that were deleted within a day."""
    since = time.time() - _DAY_SECONDS
    files = (
        select(_FILES.c.storage_key, _FILES.c.bytes)
        .where(_FILES.c.project_id == project_id, _FILES.c.deleted_at > since)
        .distinct()
        .subquery()
    )
    # A folder is deleted once all that are in it are.
    folders = (
        select(func.max(_ADAPTERS.c.bytes).label("bytes"))
        .where(_ADAPTERS.c.project_id == project_id)
        .group_by(_ADAPTERS.c.storage_key)
        .having(func.count() == func.count(_ADAPTERS.c.deleted_at), func.max(_ADAPTERS.c.deleted_at) > since)
        .subquery()
    )
    return sum(int(session.scalar(select(func.sum(part.c.bytes))) or 0) for part in (files, folders))
