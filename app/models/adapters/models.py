"""Published LoRA weights."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class Adapter(Base):
    """Immutable weights under a served name that is never used again, even after deletion."""

    __tablename__ = "adapters"
    __table_args__ = (Index("ix_adapters_project_created", "project_id", "created_at", "name"),)

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    """The served name: `ft:<base>:<project>:<suffix>:<id>`; a checkpoint's ends with `:ckpt-step-<n>`."""
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("fine_tuning_jobs.id"), index=True)
    """None: it was trained elsewhere and imported."""
    parent: Mapped[str | None] = mapped_column(String(255))
    """The adapter that its training went on from; None: it began with the base model, or elsewhere."""
    base_model: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(512))
    """The PEFT folder, relative to the storage root."""
    created_at: Mapped[float] = mapped_column(default=time.time)
    deleted_at: Mapped[float | None]
    quarantine_reason: Mapped[str | None] = mapped_column(String(1024))
    """Why no engine may load it any more; None: it is fine as far as is known."""
    parity: Mapped[dict[str, Any] | None]
    """How far the engine's answers were from the trainer's, once they were compared."""
