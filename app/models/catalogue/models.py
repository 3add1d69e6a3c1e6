"""The table of the base models that were added to the catalogue beside those of the settings."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import BigInteger, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class BaseModelRow(Base):
    """A base model that `toque models add` or `toque models pull` has put into the catalogue."""

    __tablename__ = "base_models"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    entry: Mapped[dict[str, Any]]
    """The whole `BaseModelEntry`, so that a new field of it needs no migration."""
    added_at: Mapped[float] = mapped_column(default=time.time)


class StoredBaseModel(Base):
    """A base model whose files are in the bucket. Adapters rely on a name standing for the same ones."""

    __tablename__ = "stored_base_models"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    source: Mapped[str] = mapped_column(Text)
    """Where the files are from, as the entry of the catalogue says it."""
    digest: Mapped[str] = mapped_column(String(64))
    """The SHA-256 of the manifest, in hexadecimal."""
    bytes: Mapped[int] = mapped_column(BigInteger)
    stored_at: Mapped[float] = mapped_column(default=time.time)

    @property
    def storage_key(self) -> str:
        """The key of the folder that has the files and their manifest."""
        return f"bases/{self.name}/{self.digest}"
