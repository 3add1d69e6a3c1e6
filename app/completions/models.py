"""Engines: the vLLM processes that answer."""

from __future__ import annotations

from sqlalchemy import Double, String
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, new_id


class Engine(Base):
    """A vLLM process as it last reported itself; its own process writes this row, gateways read it."""

    __tablename__ = "engines"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("engine_"))
    base_model: Mapped[str] = mapped_column(String(64), index=True)
    url: Mapped[str] = mapped_column(String(512))
    """`unix:/path/to/socket` or `http://host:port`."""
    api_key: Mapped[str] = mapped_column(String(128))
    """What the gateway shows the engine; made anew at each start."""
    status: Mapped[str] = mapped_column(String(16))
    """`starting` or `ready`."""
    detail: Mapped[str] = mapped_column(String(1024), default="")
    """Why it is not ready, for people."""
    device: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[float] = mapped_column(Double)
    heartbeat_at: Mapped[float] = mapped_column(Double)
    """By the database's clock."""
