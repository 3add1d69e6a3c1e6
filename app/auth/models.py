"""Projects, their service accounts, and the API keys of those."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.auth.roles import Role
from app.core.database import Base, new_id


class Project(Base):
    """The tenant that every file, job and model belongs to."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("proj_"))
    name: Mapped[str] = mapped_column(String(64), unique=True)
    """Lower-case letters, digits and dashes; it is part of the names of the project's models, and stays."""
    title: Mapped[str] = mapped_column(String(128))
    """What people call it."""
    created_at: Mapped[float] = mapped_column(default=time.time)
    archived_at: Mapped[float | None]
    """When it was archived; its keys are refused from then on."""
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """The most bytes that it may store; None means any number."""
    max_gpu_hours: Mapped[float | None]
    """The most GPU-hours of a calendar month after which it may create jobs; None means any number."""
    retention_days: Mapped[dict[str, Any] | None]
    """The days after which something is deleted, by its kind; what is not named stays."""


class ServiceAccount(Base):
    """A program that uses a project. It has one key, or several while one is being replaced."""

    __tablename__ = "service_accounts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("svc_acct_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[float] = mapped_column(default=time.time)
    deleted_at: Mapped[float | None]


class ApiKey(Base):
    """An API key, of which only the SHA-256 is stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("key_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    service_account_id: Mapped[str] = mapped_column(ForeignKey("service_accounts.id"), index=True)
    name: Mapped[str] = mapped_column(String(128))
    key_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    hint: Mapped[str] = mapped_column(String(16))
    """The last four characters of its secret, to tell keys apart in a list."""
    role: Mapped[Role] = mapped_column(String(16))
    models: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """The only models and aliases that it may ask; None means all of the project."""
    created_at: Mapped[float] = mapped_column(default=time.time)
    lifetime_seconds: Mapped[float | None]
    """For how long it was meant to be valid; a rotation ends it earlier."""
    expires_at: Mapped[float | None]
    last_used_at: Mapped[float | None]
    """To the minute."""
    revoked_at: Mapped[float | None]

    project: Mapped[Project] = relationship()
    service_account: Mapped[ServiceAccount] = relationship()
