"""The table of the base models that were added to the catalogue beside those of the settings."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class BaseModelRow(Base):
    """A base model that `toque models add` or `toque models pull` has put into the catalogue."""

    __tablename__ = "base_models"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    entry: Mapped[dict[str, Any]]
    """The whole `BaseModelEntry`, so that a new field of it needs no migration."""
    added_at: Mapped[float] = mapped_column(default=time.time)
