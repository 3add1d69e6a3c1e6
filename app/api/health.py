"""`/health` and `/metrics`: for load balancers, supervisors and dashboards; no key needed."""

from __future__ import annotations

from typing import Any, Literal, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from app.api.metrics import Metrics
from app.batches import service as batches_service
from app.completions import service as completions_service
from app.completions.replicas import Replicas
from app.core import migrations
from app.core.errors import ErrorBody
from app.core.settings import Settings
from app.dependencies import DatabaseDep, ReadSession, SettingsDep
from app.fine_tuning import service as fine_tuning_service
from app.fine_tuning import worker_registry
from app.models.catalogue import Catalogue, is_prepared

router = APIRouter(tags=["Health"])

_LOCK_SECONDS = 1.0
"""How long SQLite's lock may be held before the service counts as not ready."""


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class Ready(BaseModel):
    """Can jobs be trained and completions answered? Each check says `ok` or why not."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str]
    error: ErrorBody | None = None


@router.get("/health/live")
async def live() -> Live:
    """Whether the process answers."""
    return Live()


@router.get("/health/ready", responses={503: {"model": Ready, "description": "Not ready, with the reasons"}})
def ready(request: Request, database: DatabaseDep, settings: SettingsDep) -> Response:
    """Whether jobs can be trained and completions answered, and if not why."""
    try:
        if migrations.is_outdated(database.engine):
            checks = {"database": migrations.OUTDATED}  # and nothing else can be told
        elif not database.lock_is_free(_LOCK_SECONDS):
            # Workers and engines cannot report themselves, so that they only seem to be gone.
            checks = {"database": "another process holds SQLite's lock: nothing can be written"}
        else:
            with database.reader() as session:
                checks = {"database": "ok"} | _deployment_checks(session, settings, _replicas(request))
    except Exception as error:
        checks = {"database": f"cannot be used: {type(error).__name__}"}
    problems = [f"{name}: {state}" for name, state in checks.items() if state != "ok"]
    if not problems:
        return JSONResponse(Ready(status="ready", checks=checks).model_dump(exclude_none=True))
    error = ErrorBody(message="; ".join(problems), type="server_error", code="not_ready")
    body = Ready(status="not_ready", checks=checks, error=error)
    return JSONResponse(body.model_dump(), 503, {"retry-after": "5"})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(request: Request, session: ReadSession, settings: SettingsDep) -> Response:
    """Prometheus's text format."""
    registry = cast("Metrics", request.app.state.metrics)
    content = registry.exposition(
        jobs=fine_tuning_service.count_by_status(session),
        batches=batches_service.count_by_status(session),
        workers=worker_registry.with_ages(session),
        heartbeat_seconds=settings.heartbeat_seconds,
        engines=_replicas(request).count_ready(),
    )
    return Response(content, media_type="text/plain; version=0.0.4")


def _replicas(request: Request) -> Replicas:
    return cast("Replicas", request.app.state.replicas)


def _deployment_checks(session: Session, settings: Settings, replicas: Replicas) -> dict[str, str]:
    checks: dict[str, Any] = {}
    alive = worker_registry.alive(session, settings.heartbeat_seconds)
    checks["worker"] = "ok" if alive else "none is running (`toque worker` starts one); jobs wait"
    try:
        served = Catalogue.read(session, settings).engine_base
    except ValueError as error:
        return checks | {"base_model": str(error)}
    reported = completions_service.engine_status(session, settings, served.name)
    status = replicas.status(served.name, reported)
    # One that sleeps while a job trains is as it should be, and the API's other routes must go on.
    lent = any(each.lends_device for each in completions_service.live_engines(session, settings, served.name))
    # Where memory is short, the engine of another base model may have the place of the default one.
    gave_way = served.name not in completions_service.served_bases(session, settings)
    is_ok = status == "ready" or lent or (gave_way and replicas.count_ready())
    checks["engine"] = "ok" if is_ok else status
    # A worker on another machine has its own copy; without any worker here the question is open.
    if not is_prepared(settings, served) and status != "ready":
        checks["base_model"] = f"'{served.name}' is not prepared: run `toque models pull {served.name}`"
    return checks
