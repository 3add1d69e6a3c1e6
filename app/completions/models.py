"""Engines: the vLLM processes that answer."""

from __future__ import annotations

from sqlalchemy import Double, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, new_id


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
    """`stopped`, `starting` or `ready`; on a shared device also `draining`, `asleep` or `waking`."""
    detail: Mapped[str] = mapped_column(String(1024), default="")
    """Why it is not ready, for people."""
    device: Mapped[str] = mapped_column(String(64))
    shared_device: Mapped[str] = mapped_column(String(64), default="", server_default="")
    """The name of the device that it and workers take turns on; empty: it has its own."""
    version: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[float] = mapped_column(Double)
    heartbeat_at: Mapped[float] = mapped_column(Double)
    """By the database's clock."""

    @property
    def lends_device(self) -> bool:
        """Whether a job trains on its device, is about to, or has just done so."""
        return self.status in ("draining", "asleep", "waking")


class SharedDevice(Base):
    """A device that trainers and engines take turns on. Times are the database's."""

    __tablename__ = "shared_devices"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    worker_id: Mapped[str | None] = mapped_column(String(64))
    """Who has it, or waits until its engines sleep."""
    worker_until: Mapped[float] = mapped_column(Double)
    """The worker's lease; renewed while it trains."""
    engine_until: Mapped[float] = mapped_column(Double)
    """No worker may take it earlier: an engine is loading, or has its turn."""
