"""What each project has used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class _Usage:
    """The sums of one model, asked by one project, in one minute."""

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    minute: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """Its first second, since the epoch."""
    model: Mapped[str] = mapped_column(String(255), primary_key=True)
    """The served name; it stays here when the model is deleted."""
    requests: Mapped[int] = mapped_column(BigInteger)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)


class Usage(_Usage, Base):
    """Of all requests."""

    __tablename__ = "usage"


class AliasUsage(_Usage, Base):
    """Of those that named an alias; they are in `Usage`, too."""

    __tablename__ = "alias_usage"

    alias: Mapped[str] = mapped_column(String(128), primary_key=True)
    """Its name; it stays here when the alias is deleted."""


Table: TypeAlias = type[Usage] | type[AliasUsage]
Key: TypeAlias = tuple[str, int, str] | tuple[str, int, str, str]
"""Project, the minute's first second, model; in `AliasUsage` the alias, too."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Of some requests."""

    requests: int
    input_tokens: int
    output_tokens: int

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )


@dataclass(frozen=True, slots=True)
class Bucket:
    """A span of time and what was used in it, by model; without grouping, under None."""

    start: int
    end: int
    results: Sequence[tuple[str | None, Sums]]
