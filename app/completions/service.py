"""Reads the engines' rows: which engines are alive, and in which state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import case, delete, func, null, select
from sqlalchemy.orm import Session

from app.completions.engine_choice import SETTLED_SECONDS, Candidate
from app.completions.models import LENDING, Engine, EngineDemand
from app.core.database import database_now, insert_into
from app.core.settings import Settings
from app.fine_tuning.models import FineTuningJob
from app.models.adapters.models import UNVERIFIED, Adapter

_RECENT_DEMAND_SECONDS = 15.0
"""Gateways record their requests in flight every five seconds; one that does not has none, or has ended."""
_OLD_DEMAND_SECONDS = 24 * 3600.0


class ReportedEngine(NamedTuple):
    """What gateways need of an engine's row."""

    id: str
    base_model: str
    url: str
    api_key: str
    status: str
    heartbeat_at: float
    requests: int
    adapters: list[str] | None
    """None if the engine has not reported since."""

    @property
    def lends_device(self) -> bool:
        """Returns whether a job is training on the engine's device, is about to, or has just done so."""
        return self.status in LENDING


def read_reports(session: Session, settings: Settings, *, since: float) -> list[ReportedEngine]:
    """Returns the engines that reported within three heartbeats.

    Adapters, the larger part of a row, are only read of those that reported after `since`. Rows are read
    without the unit of work, which takes several times as long for a thousand of them.
    """
    query = select(
        Engine.id,
        Engine.base_model,
        Engine.url,
        Engine.api_key,
        Engine.status,
        Engine.heartbeat_at,
        Engine.requests,
        case((Engine.heartbeat_at > since, Engine.adapters), else_=null()),
    ).where(Engine.heartbeat_at > database_now() - 3 * settings.heartbeat_seconds)
    return [ReportedEngine(*row) for row in session.execute(query.order_by(Engine.started_at))]


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


def record_demand(session: Session, gateway_id: str, in_flight: Mapping[str, int]) -> None:
    """Records that a gateway is asked for base models now, and its requests in flight by base model."""
    rows = [
        {"base_model": base_model, "gateway_id": gateway_id, "in_flight": requests}
        for base_model, requests in in_flight.items()
    ]
    statement = insert_into(session, EngineDemand).values(asked_at=database_now())
    recorded = {"asked_at": database_now(), "in_flight": statement.excluded.in_flight}
    session.execute(
        statement.on_conflict_do_update(index_elements=["base_model", "gateway_id"], set_=recorded), rows
    )


def delete_old_demand(session: Session) -> None:
    """Deletes what gateways recorded more than a day ago, most of which have ended since."""
    session.execute(delete(EngineDemand).where(EngineDemand.asked_at < database_now() - _OLD_DEMAND_SECONDS))


def engines_needed(session: Session, settings: Settings) -> dict[str, int]:
    """Returns how many engines each base model needs that was ever asked for; 0 if it is idle.

    The first is for whoever asks at all, and the others for the requests that gateways have in flight.
    """
    unverified = unverified_seconds(session)
    in_flight = _requests_in_flight(session)
    needed: dict[str, int] = {}
    for base_model, seconds in idle_seconds(session, unverified).items():
        candidate = Candidate(base_model, 0, seconds, has_unverified=base_model in unverified)
        busy = math.ceil(in_flight.get(base_model, 0) / settings.fleet_requests_per_engine)
        is_wanted = candidate.is_wanted(settings.engine_idle_seconds)
        needed[base_model] = min(max(1, busy), settings.fleet_engines_per_base) if is_wanted else 0
    return needed


def idle_seconds(session: Session, unverified: Mapping[str, float]) -> dict[str, float]:
    """Returns for how many seconds each base model was not asked for.

    One with a model that a worker waits to compare with an engine's answers counts as asked for since that
    model was published, and never as idle for longer than an engine is left alone: it is wanted until then.
    `unverified` is what `unverified_seconds` returns.
    """
    asked = select(EngineDemand.base_model, func.min(database_now() - EngineDemand.asked_at)).group_by(
        EngineDemand.base_model
    )
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


def _requests_in_flight(session: Session) -> dict[str, int]:
    """Returns the requests that all gateways together have in flight, by base model."""
    counted = (
        select(EngineDemand.base_model, func.sum(EngineDemand.in_flight))
        .where(EngineDemand.asked_at > database_now() - _RECENT_DEMAND_SECONDS)
        .group_by(EngineDemand.base_model)
    )
    return {base_model: int(requests) for base_model, requests in session.execute(counted)}


def engine_status(session: Session, settings: Settings, base_model: str) -> str:
    """Returns `ready`, or in a few words why not."""
    engines = live_engines(session, settings, base_model)
    if any(engine.status == "ready" for engine in engines):
        return "ready"
    if engines:
        return engines[-1].detail or engines[-1].status
    return "none is running (`toque engine` starts one)"
