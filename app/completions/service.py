"""Reads the engines' rows: which engines are alive, and in which state."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.completions.models import Engine
from app.core.database import database_now
from app.core.settings import Settings


def live_engines(session: Session, settings: Settings, base_model: str | None = None) -> Sequence[Engine]:
    """Returns the engines, of one base model or of all, that reported within three heartbeats."""
    query = select(Engine).where(Engine.heartbeat_at > database_now() - 3 * settings.heartbeat_seconds)
    if base_model is not None:
        query = query.where(Engine.base_model == base_model)
    return session.scalars(query.order_by(Engine.started_at)).all()


def all_engines(session: Session, settings: Settings) -> Sequence[tuple[Engine, bool]]:
    """Returns every engine that has a row, oldest first, and whether it is alive."""
    alive = Engine.heartbeat_at > database_now() - 3 * settings.heartbeat_seconds
    rows = session.execute(select(Engine, alive).order_by(Engine.base_model, Engine.started_at))
    return [(engine, bool(is_alive)) for engine, is_alive in rows]


def engine_status(session: Session, settings: Settings, base_model: str) -> str:
    """Returns `ready`, or in a few words why not."""
    engines = live_engines(session, settings, base_model)
    if any(engine.status == "ready" for engine in engines):
        return "ready"
    if engines:
        return engines[-1].detail or engines[-1].status
    return "none is running (`toque engine` starts one)"
