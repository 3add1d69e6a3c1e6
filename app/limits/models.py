"""What projects and keys may use, and what they have used of it where several gateways count together."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, new_id


class RateLimit(Base):
    """What a project, or one of its keys, may ask of a base model and what is tuned from it, or of all."""

    __tablename__ = "rate_limits"
    __table_args__ = (UniqueConstraint("project_id", "api_key_id", "base_model"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("rl_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    api_key_id: Mapped[str] = mapped_column(String(64), default="")
    """The key that it is for; empty for the whole project."""
    base_model: Mapped[str] = mapped_column(String(64), default="")
    """The base model that it is for; empty for all of them together."""
    max_requests_per_1_minute: Mapped[int | None] = mapped_column(BigInteger)
    """None means unlimited, here and below."""
    max_tokens_per_1_minute: Mapped[int | None] = mapped_column(BigInteger)
    max_concurrent_requests: Mapped[int | None] = mapped_column(BigInteger)


class RateWindow(Base):
    """What was used of one quota in its current minute. PostgreSQL does not keep it through a crash."""

    __tablename__ = "rate_windows"

    name: Mapped[str] = mapped_column(String(160), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64), index=True)
    most: Mapped[int] = mapped_column(BigInteger)
    used: Mapped[int] = mapped_column(BigInteger)
    ends_at: Mapped[float]
    """By the database's clock."""


class RequestsInFlight(Base):
    """How many requests of one quota a gateway is answering. Those of a dead gateway count for a minute."""

    __tablename__ = "requests_in_flight"

    name: Mapped[str] = mapped_column(String(160), primary_key=True)
    gateway_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64), index=True)
    count: Mapped[int] = mapped_column(BigInteger)
    alive_until: Mapped[float]
    """By the database's clock; the gateway renews it."""
