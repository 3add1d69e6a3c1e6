"""The engines that this gateway may ask, as the database and the settings name them.

Engines report their load and their adapters in their rows. A gateway itself asks an engine for its health
only if a request has failed there, or if nothing was heard of it while requests wait. Engines of others
report nothing, and are asked every two seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import TypeVar

from anyio import to_thread
from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError

from app.completions import service
from app.completions.demand import Demand
from app.completions.placement import Placement
from app.completions.replica import Replica
from app.completions.service import ReportedEngine
from app.completions.vllm_client import RetryableError
from app.core.database import Database
from app.core.errors import ToqueError, UnavailableError
from app.core.settings import EngineAddress, Settings

log = logging.getLogger("toque.replicas")

T = TypeVar("T")

_ATTEMPTS = 2
_REFRESH_SECONDS = 1.0
_LATE_SECONDS = 2.0
"""How much later than others a report may be committed that is older than theirs."""
_PROBE_EVERY_SECONDS = 2.0
_READY_POLL_SECONDS = 0.1
_RETRY_SECONDS = 5
_TRAINING_RETRY_SECONDS = 30
"""The `retry-after` of a request that is refused because a job trains on the engine's device."""


class Replicas:
    """All replicas of this gateway. Lives on the event loop's thread."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._demand = Demand(database)
        self._by_id: dict[str, Replica] = {}
        self._placements: defaultdict[str, Placement] = defaultdict(Placement)
        """By base model."""
        self._leaving: list[Replica] = []
        self._reported_until = 0.0
        """The newest heartbeat that was read, by the database's clock."""
        self._lent: set[str] = set()
        """Base models with an engine whose device is lent to a job."""
        self._configured = {configured_id(address): address for address in settings.engine_urls}
        self._probe_now = asyncio.Event()

    async def run(self) -> None:
        """Follows the database, and probes engines in doubt, until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._probe())

    async def close(self) -> None:
        """Closes every connection."""
        for replica in [*self._by_id.values(), *self._leaving]:
            await replica.connection.close()

    async def choose(self, base_model: str, key: str, *, exclude: Collection[Replica] = ()) -> Replica:
        """Returns the replica to ask; see `app.completions.placement` for which, and for `key`.

        Raises:
            UnavailableError: none is ready, except for those in `exclude`.
        """
        placement = self._placements[base_model]
        self._demand.note(base_model)
        replica = placement.choose(key, exclude)
        if replica is None and not exclude:
            await self.refresh()  # one may have become ready a moment ago
            replica = placement.choose(key)
        if replica is None and not exclude:
            await self._demand.record(
                [*self._by_id.values(), *self._leaving]
            )  # at once, so that an engine is started
            await self._wait_until_ready(base_model)
            replica = placement.choose(key)
        if replica is None:
            raise await self._none_ready(base_model)
        return replica

    async def ask(self, base_model: str, key: str, send: Callable[[Replica], Awaitable[T]]) -> T:
        """Returns the result of `send` with one replica or, if that one sends nothing, with another.

        Raises:
            UnavailableError: no engine is ready, or none answered.
            InvalidRequestError: the engine refused the request.
        """
        asked: list[Replica] = []
        while True:
            replica = await self.choose(base_model, key, exclude=asked)
            asked.append(replica)
            try:
                with self._placements[base_model].serving(replica):
                    return await send(replica)
            except RetryableError as error:
                self._doubt(replica, is_gone=error.is_gone)
                if len(asked) == _ATTEMPTS or not self.ready(base_model, asked):
                    raise _with_replica(error.error, replica) from error
            except ToqueError as error:
                if isinstance(error, UnavailableError):
                    self._doubt(replica)
                raise _with_replica(error, replica) from None

    def ready(self, base_model: str, exclude: Collection[Replica] = ()) -> list[Replica]:
        """Returns the replicas of a base model that are up, without those to exclude."""
        placement = self._placements.get(base_model)
        there = placement.replicas if placement else ()
        return [replica for replica in there if replica not in exclude]

    async def _wait_until_ready(self, base_model: str) -> None:
        """Waits a limited time until an engine is started or gets its device back."""
        until = time.monotonic() + self._settings.engine_wait_seconds
        while time.monotonic() < until:
            await asyncio.sleep(_READY_POLL_SECONDS)
            if self.ready(base_model):
                return
            self._demand.note(base_model)  # or the engine would be idle before it is ready

    def up(self) -> list[Replica]:
        """Returns the replicas that are up, of all base models."""
        return [replica for placement in list(self._placements.values()) for replica in placement.replicas]

    def count_ready(self) -> dict[str, int]:
        """Returns the number of replicas that are up, by base model."""
        counts = {name: len(placement.replicas) for name, placement in list(self._placements.items())}
        return {name: count for name, count in counts.items() if count}

    def status(self, base_model: str, reported: str) -> str:
        """Returns `ready`, or why not, from what the engines report and from whether they answer."""
        if self.ready(base_model):
            return "ready"
        known = any(replica.address.base_model == base_model for replica in list(self._by_id.values()))
        return "it does not answer" if known and reported == "ready" else reported

    async def refresh(self) -> None:
        """Brings the replicas up to date with the database."""
        reports = await to_thread.run_sync(self._read_reports)
        self._lent = {report.base_model for report in reports if report.lends_device}
        ready = {report.id: report for report in reports if report.status == "ready"}
        found = self._configured | {report.id: _address(report) for report in ready.values()}
        for replica_id, replica in list(self._by_id.items()):
            if found.get(replica_id) != replica.address:
                self._leaving.append(self._by_id.pop(replica_id))  # its streams may finish
        for replica_id, address in found.items():
            if replica_id not in self._by_id:
                is_ours = replica_id not in self._configured
                self._by_id[replica_id] = Replica(
                    replica_id, address, self._settings.upstream_timeout, is_ours=is_ours
                )
        for report in ready.values():
            if report.adapters is not None:
                self._by_id[report.id].take_report(report.heartbeat_at, report.requests, report.adapters)
        self._place()
        done = [replica for replica in self._leaving if not replica.in_flight]
        self._leaving = [replica for replica in self._leaving if replica.in_flight]
        for replica in done:
            await replica.connection.close()

    def _read_reports(self) -> list[ReportedEngine]:
        with self._database.reader() as session:
            since = self._reported_until - _LATE_SECONDS
            reports = service.read_reports(session, self._settings, since=since)
        self._reported_until = max((report.heartbeat_at for report in reports), default=self._reported_until)
        return reports

    def _place(self) -> None:
        """Lets requests go to the replicas that are up, and only to those."""
        up: defaultdict[str, list[Replica]] = defaultdict(list)
        for replica in self._by_id.values():
            if not replica.is_down:
                up[replica.address.base_model].append(replica)
        for base_model in {*up, *self._placements}:
            self._placements[base_model].update(up[base_model])

    def _doubt(self, replica: Replica, *, is_gone: bool = False) -> None:
        """Has a replica probed on which a request has failed. If nothing listens there, it is down."""
        replica.is_in_doubt = True
        self._probe_now.set()
        if is_gone and not replica.is_down:
            replica.is_down = True
            self._place()

    async def _none_ready(self, base_model: str) -> UnavailableError:
        def reported() -> str:
            with self._database.reader() as session:
                return service.engine_status(session, self._settings, base_model)

        reason = self.status(base_model, await to_thread.run_sync(reported))
        return UnavailableError(
            f"No engine for '{base_model}' is ready: {reason}.",
            code="engine_unavailable",
            retry_after=_TRAINING_RETRY_SECONDS if base_model in self._lent else _RETRY_SECONDS,
        )

    async def _follow(self) -> None:
        while True:
            try:
                await self.refresh()
                await self._demand.record([*self._by_id.values(), *self._leaving])
            except SQLAlchemyError as error:
                log.warning(
                    "the database is away, so the engines stay as last known: %s", type(error).__name__
                )
            except Exception:  # this task must go on, whatever happens
                log.exception("the engines cannot be read")
            await asyncio.sleep(_REFRESH_SECONDS)

    async def _probe(self) -> None:
        while True:
            self._probe_now.clear()
            in_doubt = [replica for replica in self._by_id.values() if replica.needs_probe]
            if in_doubt:
                await asyncio.gather(*(replica.probe() for replica in in_doubt))
                self._place()
            for replica in in_doubt:
                if replica.is_down and self.ready(replica.address.base_model):
                    replica.abort_waits()
            with suppress(TimeoutError):
                async with asyncio.timeout(_PROBE_EVERY_SECONDS):
                    await self._probe_now.wait()


def _address(report: ReportedEngine) -> EngineAddress:
    return EngineAddress(base_model=report.base_model, url=report.url, api_key=SecretStr(report.api_key))


def configured_id(address: EngineAddress) -> str:
    """Returns the id of an engine that the settings name; it is the same in every gateway."""
    return "engine_" + hashlib.sha256(address.url.encode()).hexdigest()[:24]


def _with_replica(error: ToqueError, replica: Replica) -> ToqueError:
    error.headers["x-toque-replica"] = replica.id
    return error
