"""Uploads that were interrupted, and how much of each has arrived."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.uploads.models import Upload, UploadPart

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class UnfinishedUpload:
    """An upload that can go on."""

    id: str
    filename: str
    bytes: int
    arrived: int
    expires_at: float


def unfinished_uploads(session: Session, project_id: str) -> list[UnfinishedUpload]:
    """Return the project's newest uploads that are open."""
    arrived = (
        select(func.coalesce(func.sum(UploadPart.bytes), 0))
        .where(UploadPart.upload_id == Upload.id)
        .scalar_subquery()
    )
    found = (
        select(Upload.id, Upload.filename, Upload.bytes, arrived, Upload.expires_at)
        .where(Upload.project_id == project_id, Upload.status == "pending", Upload.expires_at > time.time())
        .order_by(Upload.created_at.desc(), Upload.id.desc())
        .limit(_SHOWN)
    )
    return [
        UnfinishedUpload(id_, filename, size, int(come), expires_at)
        for id_, filename, size, come, expires_at in session.execute(found)
    ]
