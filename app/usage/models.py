"""The usage of each project: entries that gateways append, and the sums that these are folded into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class _Usage:
    """The sums of one model, asked by one project, in one minute."""

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    minute: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """The first second of the minute, since the epoch."""
    model: Mapped[str] = mapped_column(String(255), primary_key=True)
    """The model's served name, which stays here when the model is deleted."""
    requests: Mapped[int] = mapped_column(BigInteger)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)


class Usage(_Usage, Base):
    """The sums of all requests."""

    __tablename__ = "usage"


class AliasUsage(_Usage, Base):
    """The sums of the requests that named an alias; `Usage` counts these, too."""

    __tablename__ = "alias_usage"

    alias: Mapped[str] = mapped_column(String(128), primary_key=True)
    """The alias's name, which stays here when the alias is deleted."""


class KeyUsage(_Usage, Base):
    """The sums of the requests of each key; `Usage` counts these, too."""

    __tablename__ = "key_usage"

    api_key_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Empty for what the service asks itself, such as the requests of a batch."""


class UsageEntry(Base):
    """What one gateway counted in a few seconds. It is never changed, and soon folded into the sums."""

    __tablename__ = "usage_entries"
    __table_args__ = (Index("ix_usage_entries_minute", "minute", "project_id"),)

    seq: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    minute: Mapped[int] = mapped_column(BigInteger)
    model: Mapped[str] = mapped_column(String(255))
    api_key_id: Mapped[str] = mapped_column(String(64))
    """Empty for what the service asks itself."""
    alias: Mapped[str | None] = mapped_column(String(128))
    """The alias that was named, if one was."""
    requests: Mapped[int] = mapped_column(BigInteger)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)


class UsageBatch(Base):
    """The last batch of entries that a gateway has written, so that none is written twice."""

    __tablename__ = "usage_batches"

    gateway_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    """Gateways number their batches from 1."""
    written_at: Mapped[float]


Table: TypeAlias = type[Usage] | type[AliasUsage] | type[KeyUsage]
Key: TypeAlias = tuple[str, int, str] | tuple[str, int, str, str]
"""The project, the minute's first second and the model; in the other tables also the alias or the key."""
KEYS: dict[Table, tuple[str, ...]] = {
    Usage: ("project_id", "minute", "model"),
    KeyUsage: ("project_id", "minute", "model", "api_key_id"),
    AliasUsage: ("project_id", "minute", "model", "alias"),
}
"""The columns of a table's key."""
SUMS = ("requests", "input_tokens", "output_tokens")
"""The columns with sums."""


class EntryKey(NamedTuple):
    """What an entry is the sum of."""

    project_id: str
    minute: int
    model: str
    api_key_id: str
    alias: str | None


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums of some requests."""

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
class Group:
    """What sums are of: None stands for all projects, all models, or all keys."""

    project_id: str | None = None
    model: str | None = None
    api_key_id: str | None = None


@dataclass(frozen=True, slots=True)
class Bucket:
    """A span of time with the sums in it by group."""

    start: int
    end: int
    results: Sequence[tuple[Group, Sums]]
