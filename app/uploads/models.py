"""Uploads in parts, and the parts that have arrived."""

from __future__ import annotations

import time

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, new_id

LIFE_SECONDS = 3600.0


class Upload(Base):
    """A file that arrives in parts, until it is completed or cancelled, for an hour at most."""

    __tablename__ = "uploads"
    __table_args__ = (Index("ix_uploads_project_created", "project_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("upload_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(32))
    mime_type: Mapped[str] = mapped_column(String(255))
    bytes: Mapped[int] = mapped_column(BigInteger)
    """The size of the whole file, as its owner announced it."""
    status: Mapped[str] = mapped_column(String(32), default="pending")
    """`pending`, `completed` or `cancelled`; one that stayed pending for too long counts as expired."""
    file_life_seconds: Mapped[int | None]
    """The file's life by `expires_after`; None if it does not expire."""
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    created_at: Mapped[float] = mapped_column(default=time.time)
    expires_at: Mapped[float] = mapped_column(default=lambda: time.time() + LIFE_SECONDS)

    @property
    def has_expired(self) -> bool:
        """Whether an hour has passed in which it was neither completed nor cancelled."""
        return self.status == "pending" and self.expires_at <= time.time()


class UploadPart(Base):
    """A part of an upload; equal parts of one upload share their bytes."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index("ix_upload_parts_upload", "upload_id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("part_"))
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    is_direct: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Whether its sender puts it straight into the bucket. Then size and hash are what was announced."""
    created_at: Mapped[float] = mapped_column(default=time.time)

    @property
    def storage_key(self) -> str:
        """The key of its bytes in storage, until the upload is over."""
        return f"{parts_key(self.upload_id)}/{'direct-' if self.is_direct else ''}{self.sha256}"


def parts_key(upload_id: str) -> str:
    """Return the key of the folder that holds an upload's parts."""
    return f"uploads/{upload_id}"
