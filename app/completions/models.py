"""Tables of the engines, which are vLLM processes, and of the devices that they share with workers."""

from __future__ import annotations

from sqlalchemy import BigInteger, Double, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, new_id

LENDING = ("draining", "asleep", "waking")
"""Statuses of an engine on whose device a job trains, is about to, or has just done so."""


class Engine(Base):
    """A vLLM process as last reported. The engine process writes the row, and gateways read it."""

    __tablename__ = "engines"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("engine_"))
    base_model: Mapped[str] = mapped_column(String(64), index=True)
    url: Mapped[str] = mapped_column(String(512))
    """`unix:/path/to/socket` or `http://host:port`."""
    api_key: Mapped[str] = mapped_column(String(128))
    """Key with which gateways authenticate at the engine; generated at each start."""
    status: Mapped[str] = mapped_column(String(16))
    """`stopped`, `starting`, `ready` or `stopping`; on a shared device `draining`, `asleep` or `waking`."""
    detail: Mapped[str] = mapped_column(String(1024), default="")
    """Why the engine is not ready, in words."""
    device: Mapped[str] = mapped_column(String(64))
    shared_device: Mapped[str] = mapped_column(String(64), default="", server_default="")
    """Name of the device that the engine shares with workers; empty if it has a device of its own."""
    version: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[float] = mapped_column(Double)
    heartbeat_at: Mapped[float] = mapped_column(Double)
    """Time of the last heartbeat, by the database's clock."""
    requests: Mapped[int] = mapped_column(default=0, server_default="0")
    """Requests that it computed or had waiting then."""
    adapters: Mapped[list[str]] = mapped_column(default=list, server_default="[]")
    """Adapters that it had in memory then."""
    memory_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Resident memory of the machine that the engine and vLLM took then."""

    @property
    def lends_device(self) -> bool:
        """Returns whether a job is training on the engine's device, is about to, or has just done so."""
        return self.status in LENDING


class EngineDemand(Base):
    """What a gateway is asked of a base model: engines are started and stopped accordingly.

    A gateway that died leaves its rows behind, which say nothing after a while.
    """

    __tablename__ = "engine_demands"

    base_model: Mapped[str] = mapped_column(String(64), primary_key=True)
    gateway_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    asked_at: Mapped[float] = mapped_column(Double)
    """When the gateway was last asked for the base model, by the database's clock."""
    in_flight: Mapped[int] = mapped_column(default=0, server_default="0")
    """The requests that the gateway had in flight at that time."""


class SharedDevice(Base):
    """A device that trainers and engines take turns on. Times are by the database's clock."""

    __tablename__ = "shared_devices"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    worker_id: Mapped[str | None] = mapped_column(String(64))
    """Worker that holds the device, or waits until its engines sleep."""
    worker_until: Mapped[float] = mapped_column(Double)
    """End of the worker's lease, which is renewed while it trains."""
    engine_until: Mapped[float] = mapped_column(Double)
    """Time before which no worker may take the device, because an engine is loading or has its turn."""
