"""Aliases, and the history of where each has pointed."""

from __future__ import annotations

import time
from typing import Any, Literal, TypedDict

from sqlalchemy import JSON, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, new_id

ChangeKind = Literal["created", "set", "promoted", "rolled_back", "deleted"]


class Share(TypedDict):
    """A model of a split, and how much of the traffic it gets beside the others."""

    model: str
    """Served name of an adapter, or a base model's own name: never another alias."""
    weight: float


class Alias(Base):
    """A project's name for one model, or for several that share its traffic.

    The row outlives a deletion so that its version only rises: nobody takes a new alias for the old one.
    """

    __tablename__ = "aliases"
    __table_args__ = (Index("ix_aliases_project_name", "project_id", "name", unique=True),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("alias_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(128))
    split: Mapped[list[Share]] = mapped_column(JSON)
    """The models it points to: one share if there is one model, none once the alias is deleted."""
    version: Mapped[int]
    created_at: Mapped[float] = mapped_column(default=time.time)
    updated_at: Mapped[float] = mapped_column(default=time.time)
    deleted_at: Mapped[float | None]


class AliasChange(Base):
    """One line of an alias's history, which never changes."""

    __tablename__ = "alias_changes"
    __table_args__ = (Index("ix_alias_changes_version", "alias_id", "version", unique=True),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("aliaschange_"))
    alias_id: Mapped[str] = mapped_column(ForeignKey("aliases.id"))
    version: Mapped[int]
    """The version of the alias from this change on."""
    kind: Mapped[ChangeKind] = mapped_column(String(16))
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    """The API key that the change was requested with."""
    reason: Mapped[str | None] = mapped_column(String(512))
    comparison_id: Mapped[str | None] = mapped_column(String(64))
    """The comparison that the change is based on."""
    rules: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    """The rules of a promotion, with their figures."""
    split_before: Mapped[list[Share]] = mapped_column(JSON)
    split_after: Mapped[list[Share]] = mapped_column(JSON)
    restored_version: Mapped[int | None]
    """The version of the change that a rollback returned to."""
    created_at: Mapped[float] = mapped_column(default=time.time)
