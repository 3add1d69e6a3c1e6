"""Stored responses."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class StoredResponse(Base):
    """A response of `POST /v1/responses` that may be read again and continued, until it expires."""

    __tablename__ = "responses"
    __table_args__ = (Index("ix_responses_expires", "expires_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    previous_id: Mapped[str | None] = mapped_column(String(64))
    """The response that it continues. No foreign key: that one may be deleted, or expire, before it."""
    input: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """The items of its own request, without those of the responses before it."""
    response: Mapped[dict[str, Any]]
    """The response as its client got it."""
    bytes: Mapped[int]
    """The length of its input and of the response as JSON."""
    expires_at: Mapped[float]
