"""Rules on engines: which are alive, and which one answers a request."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.adapters import service as adapters_service
from app.adapters.service import ServedModel
from app.completions.models import Engine
from app.database import database_now
from app.errors import UnavailableError
from app.settings import Settings


def route_request(
    session: Session, settings: Settings, project_id: str, model: str
) -> tuple[ServedModel, Engine]:
    """The model that a request names and an engine that serves it.

    Raises:
        NotFoundError: the project has no such model.
        UnavailableError: no engine of its base is ready.
    """
    served = adapters_service.resolve_model(session, settings, project_id, model)
    ready = [
        engine for engine in live_engines(session, settings, served.base_model) if engine.status == "ready"
    ]
    if not ready:
        raise UnavailableError(
            f"No engine for '{served.base_model}' is ready: "
            f"{engine_status(session, settings, served.base_model)}.",
            code="engine_unavailable",
        )
    return served, random.choice(ready)  # noqa: S311 - spreads load


def live_engines(session: Session, settings: Settings, base_model: str) -> Sequence[Engine]:
    """Engines of the base that reported themselves within three heartbeats."""
    recent = Engine.heartbeat_at > database_now() - 3 * settings.heartbeat_seconds
    query = select(Engine).where(Engine.base_model == base_model, recent)
    return session.scalars(query.order_by(Engine.started_at)).all()


def engine_status(session: Session, settings: Settings, base_model: str) -> str:
    """`ready`, or in a few words why not."""
    engines = live_engines(session, settings, base_model)
    if any(engine.status == "ready" for engine in engines):
        return "ready"
    if engines:
        return engines[-1].detail or engines[-1].status
    return "none is running (`toque engine` starts one)"


def count_ready(session: Session, settings: Settings) -> dict[str, int]:
    """Engines ready to answer, by base model."""
    recent = Engine.heartbeat_at > database_now() - 3 * settings.heartbeat_seconds
    query = select(Engine.base_model, func.count()).where(Engine.status == "ready", recent)
    rows = session.execute(query.group_by(Engine.base_model))
    return {base: count for base, count in rows}  # noqa: C416 - rows are no pairs to the type checker
