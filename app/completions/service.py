"""Reads the engines' rows: which engines are alive, and in which state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.completions.engine_choice import SETTLED_SECONDS
from app.completions.models import Engine, EngineDemand
from app.core.database import database_now
from app.core.settings import Settings
from app.fine_tuning.models import FineTuningJob
from app.models.adapters.models import UNVERIFIED, Adapter


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


def served_bases(session: Session, settings: Settings) -> set[str]:
    """Returns the base models that an engine of the deployment serves, or is about to."""
    found = {engine.base_model for engine in live_engines(session, settings)}
    return found | {address.base_model for address in settings.engine_urls}


def record_demand(session: Session, base_models: Iterable[str]) -> None:
    """Records that these base models are asked for now; other processes may do so at the same time."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    # Sorted, since two processes that lock rows in different orders could wait for each other.
    rows = [{"base_model": base_model} for base_model in sorted(base_models)]
    now = {"asked_at": database_now()}
    statement = (
        insert(EngineDemand).values(now).on_conflict_do_update(index_elements=["base_model"], set_=now)
    )
    session.execute(statement, rows)


def idle_seconds(session: Session, unverified: Mapping[str, float]) -> dict[str, float]:
    """Returns for how many seconds each base model was not asked for.

    One with a model that a worker waits to compare with an engine's answers counts as asked for since that
    model was published, and never as idle for longer than an engine is left alone: it is wanted until then.
    `unverified` is what `unverified_seconds` returns.
    """
    asked = select(EngineDemand.base_model, database_now() - EngineDemand.asked_at)
    found = {base_model: min(seconds, SETTLED_SECONDS) for base_model, seconds in unverified.items()}
    for base_model, seconds in session.execute(asked):
        found[base_model] = min(seconds, found.get(base_model, seconds))
    return found


def unverified_seconds(session: Session) -> dict[str, float]:
    """Returns, by base model, the age of the newest model that a worker waits to compare with an engine."""
    unverified = (
        select(Adapter.base_model, func.min(database_now() - Adapter.created_at))
        .join(FineTuningJob, FineTuningJob.fine_tuned_model == Adapter.name)
        .where(*UNVERIFIED)
        .group_by(Adapter.base_model)
    )
    return {base_model: seconds for base_model, seconds in session.execute(unverified)}  # noqa: C416 - a Row is no pair


def engine_status(session: Session, settings: Settings, base_model: str) -> str:
    """Returns `ready`, or in a few words why not."""
    engines = live_engines(session, settings, base_model)
    if any(engine.status == "ready" for engine in engines):
        return "ready"
    if engines:
        return engines[-1].detail or engines[-1].status
    return "none is running (`toque engine` starts one)"
