"""The engine's row in the database, through which gateways find the engine."""

from __future__ import annotations

import logging
import time

import psutil
from sqlalchemy import delete
from sqlalchemy.exc import SQLAlchemyError

from app.completions.models import Engine as EngineRow
from app.core.database import Database, database_now, new_id
from workers.device import Device
from workers.inference.engine_load import Load
from workers.process_memory import resident_bytes

log = logging.getLogger("toque.engine")

_DEAD_ROW_SECONDS = 600.0


class Registration:
    """This engine's row. The engine goes on serving while the database is unreachable."""

    def __init__(
        self,
        database: Database,
        base_model: str,
        device: Device,
        vllm_version: str,
        every: float,
        shared_device: str = "",
    ) -> None:
        self._database = database
        self._every = every
        self._id = new_id("engine_")
        self._base_model, self._device, self._version = base_model, device.name[:64], vllm_version
        self._shared_device = shared_device
        self._started_at = time.time()
        self._status, self._detail, self._url, self._api_key = "starting", "", "", ""
        self._load = Load()
        self._memory_bytes = 0
        self._due_at = 0.0
        self._unreachable = False

    @property
    def due(self) -> bool:
        """Returns whether the next heartbeat is due."""
        return time.monotonic() >= self._due_at

    def report(self, status: str, detail: str, url: str = "", api_key: str = "") -> None:
        """Writes the row at once if anything has changed, and logs a change of status."""
        if (status, detail) != (self._status, self._detail):
            log.info("%s: %s%s", self._base_model, status, f": {detail}" if detail else "")
        elif (url, api_key) == (self._url, self._api_key):
            return
        self._status, self._detail, self._url, self._api_key = status, detail[:1024], url, api_key
        if status != "ready":
            self._load = Load()
        self.heartbeat()

    def report_load(self, load: Load | None) -> None:
        """Writes the row if vLLM has requests, its load has changed, or a heartbeat is due.

        `load` is None if vLLM does not say; the last one then stays.
        """
        is_new = load is not None and (load.requests > 0 or load != self._load)
        self._load = load or self._load
        if is_new or self.due:
            self.heartbeat()

    def heartbeat(self) -> None:
        """Writes the whole row, since another engine that took this one for dead may have removed it."""
        if self.due:  # not each time that the load changes, since all processes are looked through
            process = psutil.Process()
            self._memory_bytes = resident_bytes((process, *process.children(recursive=True)))
        self._due_at = time.monotonic() + self._every
        row = EngineRow(
            id=self._id,
            base_model=self._base_model,
            url=self._url,
            api_key=self._api_key,
            status=self._status,
            detail=self._detail,
            device=self._device,
            shared_device=self._shared_device,
            version=self._version,
            started_at=self._started_at,
            heartbeat_at=database_now(),
            requests=self._load.requests,
            adapters=list(self._load.adapters),
            memory_bytes=self._memory_bytes,
        )
        long_dead = EngineRow.heartbeat_at < database_now() - _DEAD_ROW_SECONDS
        try:
            with self._database.writer() as session:
                session.merge(row)
                session.execute(delete(EngineRow).where(EngineRow.base_model == self._base_model, long_dead))
        except SQLAlchemyError as error:
            if not self._unreachable:
                log.warning(
                    "the database cannot be reached; the engine goes on serving: %s", _first_line(error)
                )
            self._unreachable = True
        else:
            if self._unreachable:
                log.warning("the database is back")
            self._unreachable = False

    def remove(self) -> None:
        """Removes the row and disconnects; must be called last."""
        try:
            with self._database.writer() as session:
                session.execute(delete(EngineRow).where(EngineRow.id == self._id))
        except SQLAlchemyError as error:
            log.warning("the engine's row could not be removed: %s", _first_line(error))
        self._database.dispose()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
