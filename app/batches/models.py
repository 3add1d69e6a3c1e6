"""Batches of requests, and the answers of those that are not published yet."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, new_id

FINAL_STATUSES = frozenset({"failed", "completed", "expired", "cancelled"})


class Batch(Base):
    """A file of requests that are answered in the background."""

    __tablename__ = "batches"
    __table_args__ = (
        Index("ix_batches_project_created", "project_id", "created_at", "id"),
        Index("ix_batches_status_created", "status", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("batch_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    endpoint: Mapped[str] = mapped_column(String(64))
    """The route that every request of the file is for."""
    input_file_id: Mapped[str] = mapped_column(ForeignKey("files.id"))
    status: Mapped[str] = mapped_column(String(16), default="validating")
    model: Mapped[str | None] = mapped_column(String(255))
    """The model or alias that every request names, once the file is validated."""
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    """What is wrong with the file, as `app.batches.schemas.BatchError`."""
    output_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    error_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    output_seconds: Mapped[int | None]
    """The life of the output and error files; None if they do not expire."""
    batch_metadata: Mapped[dict[str, Any] | None]

    total: Mapped[int] = mapped_column(default=0)
    """Requests in the file; 0 until it is validated."""
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    """Requests that were answered with an error."""
    input_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    cached_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    output_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger, default=0)

    created_at: Mapped[float] = mapped_column(default=time.time)
    expires_at: Mapped[float]
    in_progress_at: Mapped[float | None]
    finalizing_at: Mapped[float | None]
    completed_at: Mapped[float | None]
    failed_at: Mapped[float | None]
    expired_at: Mapped[float | None]
    cancelling_at: Mapped[float | None]
    cancelled_at: Mapped[float | None]
    lease_epoch: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[float | None]
    """The end of the lease by the database's clock; None while no process works on the batch."""


class BatchAnswer(Base):
    """The answer to one request, written once; deleted when the output file is published."""

    __tablename__ = "batch_answers"

    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    """The request's line in the input file."""
    line: Mapped[bytes] = mapped_column(LargeBinary)
    """The line of the output file or, if the request failed, of the error file."""
    failed: Mapped[bool]
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger)
