"""Published LoRA weights."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base

CHECKPOINT = ":ckpt-step-"
"""What a checkpoint's served name has between its model's name and its step, and no other name has."""


class Adapter(Base):
    """Published weights, which never change, under a served name that is never given again."""

    __tablename__ = "adapters"
    __table_args__ = (
        Index("ix_adapters_project_created", "project_id", "created_at", "name"),
        Index("ix_adapters_base_created", "base_model", "created_at"),
    )

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    """The served name: `ft:<base>:<project>:<suffix>:<id>`; a checkpoint's ends with `:ckpt-step-<n>`."""
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("fine_tuning_jobs.id"), index=True)
    """The job that trained it; None if it was trained elsewhere and imported."""
    parent: Mapped[str | None] = mapped_column(String(255))
    """The adapter that its training continued from; None if it began with the base model, or elsewhere."""
    base_model: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(512))
    """The PEFT folder, relative to the storage root."""
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    """The size of its files; None for one that is older than this column."""
    quantization: Mapped[str | None] = mapped_column(String(16))
    """How its base model was quantized while it was trained; None if it was not, or elsewhere."""
    created_at: Mapped[float] = mapped_column(default=time.time)
    deleted_at: Mapped[float | None]
    quarantine_reason: Mapped[str | None] = mapped_column(String(1024))
    """Why no engine may load it; None if nothing is known to be wrong with it."""
    probed_at: Mapped[float | None]
    """The time at which an engine answered with it as it should; None for what a job has trained."""
    parity: Mapped[dict[str, Any] | None]
    """How far the engine's answers were from the trainer's, once they were compared."""

    @property
    def id(self) -> str:
        """The last part of its name, which no other adapter's name ends with."""
        return self.name.split(":", 4)[-1]

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a job's checkpoint, not its model."""
        return CHECKPOINT in self.name


IS_CHECKPOINT = Adapter.name.contains(CHECKPOINT, autoescape=True)
"""The condition of a checkpoint among adapters."""
UNVERIFIED = (Adapter.parity.is_(None), Adapter.quarantine_reason.is_(None), Adapter.deleted_at.is_(None))
"""The conditions of a job's model that a worker has yet to compare with an engine's answers."""
