"""The audit log."""

from __future__ import annotations

import time
from typing import Any, Literal

from sqlalchemy import BigInteger, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, new_id


class AuditLog(Base):
    """One change: who, what, when, from where, before and after. Rows are added, never changed or deleted.

    They refer to nothing, so that they outlive what they tell of.
    """

    __tablename__ = "audit_logs"
    __table_args__ = (Index("ix_audit_logs_project", "project_id", "seq"),)

    seq: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    """The order in which the changes were written."""
    id: Mapped[str] = mapped_column(String(64), unique=True, default=lambda: new_id("audit_log-"))
    effective_at: Mapped[float] = mapped_column(default=time.time, index=True)
    type: Mapped[str] = mapped_column(String(64))
    """The resource and what was done with it: `api_key.created`."""
    resource_id: Mapped[str] = mapped_column(String(255), index=True)
    project_id: Mapped[str | None] = mapped_column(String(64))
    """The project whose resource it is; None for those of the deployment."""
    actor_type: Mapped[Literal["api_key", "session"]] = mapped_column(String(16))
    """Whether it was requested with an API key, or by a command on a machine of the deployment."""
    actor_id: Mapped[str] = mapped_column(String(255))
    """The API key's id, or the user of the operating system."""
    address: Mapped[str | None] = mapped_column(String(255))
    """The network address that the request came from, or the name of the machine."""
    before: Mapped[dict[str, Any]]
    """What has changed, as it was; empty for what was created."""
    after: Mapped[dict[str, Any]]
    """What has changed, as it is now; empty for what was deleted."""
