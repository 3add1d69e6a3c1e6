"""Projects and their API keys."""

from __future__ import annotations

import time

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, new_id


class Project(Base):
    """The tenant that every file, job and model belongs to."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("proj_"))
    name: Mapped[str] = mapped_column(String(64), unique=True)
    """Lower-case letters, digits and dashes; it is part of the names of the project's models."""
    created_at: Mapped[float] = mapped_column(default=time.time)


class ApiKey(Base):
    """An API key, of which only the SHA-256 is stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("key_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str] = mapped_column(String(128))
    key_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    hint: Mapped[str] = mapped_column(String(16))
    """The last four characters of its secret, to tell keys apart in a list."""
    created_at: Mapped[float] = mapped_column(default=time.time)
    revoked_at: Mapped[float | None]
