"""Webhook endpoints, and the outbox of what is to be delivered to them."""

from __future__ import annotations

import time
from typing import Any, Literal

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, new_id
from app.webhooks.events import EventType

DeliveryStatus = Literal["pending", "succeeded", "failed"]


class WebhookEndpoint(Base):
    """An address that a project wants to be told of events. It is leased while a process delivers to it."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("whe_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str] = mapped_column(String(255))
    url: Mapped[str] = mapped_column(String(2048))
    event_types: Mapped[list[str]]
    """The types of the events that it is told of."""
    secret: Mapped[str] = mapped_column(String(128))
    """What deliveries are signed with. A signature needs the secret itself, so no digest would do."""
    previous_secret: Mapped[str | None] = mapped_column(String(128))
    """The secret before the last rotation, which deliveries are signed with as well until it expires."""
    previous_secret_until: Mapped[float | None]
    enabled: Mapped[bool] = mapped_column(default=True)
    """Whether events are written for it, and delivered."""
    created_at: Mapped[float] = mapped_column(default=time.time)
    updated_at: Mapped[float] = mapped_column(default=time.time)

    failures: Mapped[int] = mapped_column(default=0)
    """The attempts in a row that have failed."""
    not_before: Mapped[float] = mapped_column(default=0.0)
    """The earliest time of the next attempt, by the database's clock."""
    lease_epoch: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[float | None]
    """The end of the lease by the database's clock; None while no process delivers to the endpoint."""


class WebhookDelivery(Base):
    """An event that one endpoint is to be told of. Once it has succeeded or failed, it does not change."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_project_seq", "project_id", "seq"),
        Index(
            "ix_webhook_deliveries_pending",
            "endpoint_id",
            "seq",
            sqlite_where=text("status = 'pending'"),
            postgresql_where=text("status = 'pending'"),
        ),
        Index("ix_webhook_deliveries_endpoint", "endpoint_id", "seq"),
        Index("ix_webhook_deliveries_ended", "ended_at"),
    )

    seq: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    """The order in which an endpoint's deliveries are sent."""
    id: Mapped[str] = mapped_column(String(64), unique=True, default=lambda: new_id("whd_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    event_id: Mapped[str] = mapped_column(String(64))
    """The event's id, the same for all endpoints, attempts and replays."""
    event_type: Mapped[EventType] = mapped_column(String(64))
    event_created_at: Mapped[float]
    data: Mapped[dict[str, Any]]
    """The event's `data`."""
    created_at: Mapped[float] = mapped_column(default=time.time)
    status: Mapped[DeliveryStatus] = mapped_column(String(16), default="pending")
    ended_at: Mapped[float | None]

    attempts: Mapped[int] = mapped_column(default=0)
    attempted_at: Mapped[float | None]
    """The time of the last attempt; what it came to follows."""
    status_code: Mapped[int | None]
    response_body: Mapped[str | None] = mapped_column(Text)
    """The beginning of the answer's body."""
    error: Mapped[str | None] = mapped_column(String(512))
    """Why there was no answer, or why the delivery was given up without one."""
