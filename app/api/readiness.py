"""Whether the service can train jobs and answer completions."""

from __future__ import annotations

from typing import Any

from anyio import CapacityLimiter
from sqlalchemy.orm import Session

from app.completions import service as completions_service
from app.completions.replicas import Replicas
from app.core import migrations
from app.core.database import Database
from app.core.settings import Settings
from app.core.stale_while_revalidate import StaleWhileRevalidate
from app.fine_tuning import worker_registry
from app.models.catalogue import Catalogue, is_prepared

_FRESH_SECONDS = 1.0
_LOCK_SECONDS = 1.0
"""How long SQLite's lock may be held before the service counts as not ready."""


class Readiness:
    """The checks of `/health/ready`, made once in a second at most, in a thread of their own."""

    def __init__(self, settings: Settings, database: Database, replicas: Replicas) -> None:
        self._settings = settings
        self._database = database
        self._replicas = replicas
        self._checks: StaleWhileRevalidate[None, dict[str, str]] = StaleWhileRevalidate(
            self._check,
            fresh_seconds=_FRESH_SECONDS,
            stale_seconds=_FRESH_SECONDS,
            limiter=CapacityLimiter(1),
        )

    async def checks(self) -> dict[str, str]:
        """Return `ok`, or why not, for each thing that is needed; at most a second old."""
        return await self._checks.get(None)

    def _check(self, _: None) -> dict[str, str]:
        try:
            if migrations.is_outdated(self._database.engine):
                return {"database": migrations.OUTDATED}  # and nothing else can be told
            if not self._database.lock_is_free(_LOCK_SECONDS):
                # Workers and engines cannot report themselves, so that they only seem to be gone.
                return {"database": "another process holds SQLite's lock: nothing can be written"}
            with self._database.reader() as session:
                return {"database": "ok"} | _deployment_checks(session, self._settings, self._replicas)
        except Exception as error:
            return {"database": f"cannot be used: {type(error).__name__}"}


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
