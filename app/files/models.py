"""Uploaded files and results."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, new_id


class File(Base):
    """A file in storage; its bytes never change."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_project_created", "project_id", "created_at", "id"),
        Index("ix_files_storage_key", "storage_key"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("file-"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(512))
    """Where the bytes are, relative to the storage root; files with equal bytes share them."""
    examples: Mapped[int | None]
    """The number of training examples; None if the purpose is not fine-tune."""
    longest_line: Mapped[int | None]
    """The length of its longest line in bytes, which bounds the tokens of any example."""
    status: Mapped[str] = mapped_column(String(16), default="processed", server_default="processed")
    """`uploaded` until it is checked, then `processed` or `error`; other files are `processed` at once."""
    status_details: Mapped[str | None] = mapped_column(Text)
    """The first error that was found in it."""
    created_at: Mapped[float] = mapped_column(default=time.time)
    expires_at: Mapped[float | None]
    deleted_at: Mapped[float | None]
    """Set when its owner deleted it: no longer listed, kept for the jobs that name it."""


class FileCheck(Base):
    """The check of a training file: waiting, leased by an API process, or done. `epoch` counts its leases."""

    __tablename__ = "file_checks"
    __table_args__ = (
        Index("ix_file_checks_finished", "finished_at"),
        Index("ix_file_checks_project_started", "project_id", "started_at"),
    )

    file_id: Mapped[str] = mapped_column(ForeignKey("files.id"), primary_key=True)
    project_id: Mapped[str | None] = mapped_column(String(64))
    """The file's project; None if a process that is older than this column has added the row."""
    epoch: Mapped[int] = mapped_column(default=0, server_default="0")
    """Fences the writes of whoever leased it before."""
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    """Leases that came to no report."""
    lease_until: Mapped[float | None]
    """By the database's clock; a check whose lease has passed is taken by another process."""
    started_at: Mapped[float | None]
    """When it was last leased, by the database's clock: projects take turns."""
    is_large: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Whether a compressed file turned out to be a large one."""
    finished_at: Mapped[float | None]
    progress: Mapped[dict[str, Any] | None]
    """What was found so far, as `app.datasets.report.Progress`; None unless a large file is being checked."""
    report: Mapped[dict[str, Any] | None]
    """As `app.datasets.report.Report`."""
