"""The engines that this gateway may ask: found in the database and the settings, and probed regularly."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import TypeVar

from anyio import to_thread
from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError

from app.completions import service
from app.completions.vllm_client import RetryableError, VllmConnection, unreachable
from app.core.database import Database, new_id
from app.core.errors import ToqueError, UnavailableError
from app.core.settings import EngineAddress, Settings

log = logging.getLogger("toque.replicas")

T = TypeVar("T")

_ATTEMPTS = 2
_REFRESH_SECONDS = 1.0
_PROBE_EVERY_SECONDS = 2.0
_STUCK_SECONDS = 5.0
"""An engine that answers no probe for this long is stuck; a busy one may miss a single probe."""
_WARM_MODELS = 16
"""Adapters that an engine keeps in memory; see `workers.inference.vllm_process`."""
_MAX_EXTRA_IN_FLIGHT = 8
"""A warm replica is preferred up to this many more requests in flight than the idlest one has; loading the
adapter there would take about 50 ms."""

_READY_POLL_SECONDS = 0.1
_DEMAND_EVERY_SECONDS = 5.0
"""How often it is written down which base models are asked for."""
_RETRY_SECONDS = 5
_TRAINING_RETRY_SECONDS = 30
"""The `retry-after` of a request that is refused because a job trains on the engine's device."""

_turns = count()


class Replica:
    """One engine as this gateway sees it."""

    def __init__(
        self, replica_id: str, address: EngineAddress, read_timeout: float, *, has_priorities: bool
    ) -> None:
        self.id = replica_id
        self.address = address
        self.has_priorities = has_priorities
        """Whether the engine is ours, and lets requests with a `priority` wait for those without."""
        self.connection = VllmConnection(address.url, address.api_key.get_secret_value(), read_timeout)
        self.in_flight = 0
        self.is_down = False
        """Whether the engine is down; it gets no requests until it answers a probe again."""
        self._first_byte_waits: set[asyncio.Timeout] = set()
        self._warm: OrderedDict[str, None] = OrderedDict()
        self._answered_at = time.monotonic()
        self._turn = next(_turns)

    @property
    def load(self) -> tuple[int, int]:
        """Returns the sort key for choosing a replica: requests in flight, then how recently it was asked."""
        return self.in_flight, self._turn

    def is_warm(self, model: str) -> bool:
        """Returns whether the engine has recently answered for the model, and so holds its adapter."""
        return model in self._warm

    @contextmanager
    def serving(self) -> Generator[None]:
        """Counts a request as in flight for as long as the block runs."""
        self.in_flight += 1
        self._turn = next(_turns)
        try:
            yield
        except RetryableError as error:
            self.is_down = self.is_down or error.is_gone
            raise
        finally:
            self.in_flight -= 1

    @asynccontextmanager
    async def awaiting_first_byte(self) -> AsyncGenerator[None]:
        """Lets `abort_waits` end the block, which waits for the first byte of an answer.

        Raises:
            RetryableError: the engine is stuck, and another is ready.
        """
        try:
            async with asyncio.timeout(None) as wait:
                self._first_byte_waits.add(wait)
                try:
                    yield
                finally:
                    self._first_byte_waits.discard(wait)
        except TimeoutError as error:
            raise RetryableError(unreachable()) from error

    def abort_waits(self) -> None:
        """Ends the waits of `awaiting_first_byte`, so that these requests go to another engine."""
        for wait in self._first_byte_waits:
            wait.reschedule(0)

    def mark_warm(self, model: str) -> None:
        """Records that the engine holds the model's adapter now."""
        self._warm[model] = None
        self._warm.move_to_end(model)
        if len(self._warm) > _WARM_MODELS:
            self._warm.popitem(last=False)

    async def probe(self) -> None:
        """Checks the engine's health, and marks it as down or up."""
        try:
            is_down = not await self.connection.healthy()
            self._answered_at = time.monotonic()
        except TimeoutError:
            is_down = self.is_down or time.monotonic() - self._answered_at > _STUCK_SECONDS
        if is_down != self.is_down:
            log.warning(
                "engine %s %s", self.id, "does not answer and gets no more requests" if is_down else "is back"
            )
        self.is_down = is_down


class Replicas:
    """All replicas of this gateway. Lives on the event loop's thread."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._gateway_id = new_id("gateway_")
        self._by_id: dict[str, Replica] = {}
        self._leaving: list[Replica] = []
        self._lent: set[str] = set()
        """Base models with an engine whose device is lent to a job."""
        self._asked: set[str] = set()
        """Base models that were asked for, which is not written down yet."""
        self._demand_due_at: dict[str, float] = {}
        """By base model: when it is to be written down again that it is asked for."""
        self._configured = {configured_id(address): address for address in settings.engine_urls}

    async def run(self) -> None:
        """Follows the database and probes the engines until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._probe())

    async def close(self) -> None:
        """Closes every connection."""
        for replica in [*self._by_id.values(), *self._leaving]:
            await replica.connection.close()

    async def choose(self, base_model: str, model: str, *, exclude: Collection[Replica] = ()) -> Replica:
        """Returns the replica to ask: the least loaded one that has the model warm, or else the least loaded.

        Raises:
            UnavailableError: none is ready, except for those in `exclude`.
        """
        ready = self.ready(base_model, exclude)
        if not ready and not exclude:
            await self.refresh()  # one may have become ready a moment ago
            ready = self.ready(base_model, exclude)
        self._asked.add(base_model)
        if not ready and not exclude:
            await self._record_demand()  # at once, so that an engine is started
            ready = await self._wait_until_ready(base_model)
        if not ready:
            raise await self._none_ready(base_model)
        idlest = min(ready, key=lambda replica: replica.load)
        warm = [replica for replica in ready if replica.is_warm(model)]
        if model == base_model or not warm:
            return idlest
        best = min(warm, key=lambda replica: replica.load)
        return best if best.in_flight <= idlest.in_flight + _MAX_EXTRA_IN_FLIGHT else idlest

    async def ask(self, base_model: str, model: str, send: Callable[[Replica], Awaitable[T]]) -> T:
        """Returns the result of `send` with one replica or, if that one sends nothing, with another.

        Raises:
            UnavailableError: no engine is ready, or none answered.
            InvalidRequestError: the engine refused the request.
        """
        asked: list[Replica] = []
        while True:
            replica = await self.choose(base_model, model, exclude=asked)
            asked.append(replica)
            try:
                with replica.serving():
                    return await send(replica)
            except RetryableError as error:
                others = self.ready(base_model, asked)
                if len(asked) == _ATTEMPTS or not others:
                    raise _with_replica(error.error, replica) from error
            except ToqueError as error:
                raise _with_replica(error, replica) from None

    def ready(self, base_model: str, exclude: Collection[Replica] = ()) -> list[Replica]:
        """Returns the replicas of a base model that are up, without those to exclude."""
        return [
            replica
            for replica in list(self._by_id.values())  # a copy, since other threads read too
            if replica.address.base_model == base_model and not replica.is_down and replica not in exclude
        ]

    async def _wait_until_ready(self, base_model: str) -> list[Replica]:
        """Waits a limited time until an engine is started or gets its device back; returns those ready."""
        until = time.monotonic() + self._settings.engine_wait_seconds
        while time.monotonic() < until:
            await asyncio.sleep(_READY_POLL_SECONDS)
            if ready := self.ready(base_model):
                return ready
            self._asked.add(base_model)  # or the engine would be idle before it is ready
        return []

    def up(self) -> list[Replica]:
        """Returns the replicas that are up, of all base models."""
        return [replica for replica in list(self._by_id.values()) if not replica.is_down]

    def count_ready(self) -> dict[str, int]:
        """Returns the number of replicas that are up, by base model."""
        return Counter(replica.address.base_model for replica in self.up())

    def status(self, base_model: str, reported: str) -> str:
        """Returns `ready`, or why not, from what the engines report and from whether they answer."""
        if self.ready(base_model):
            return "ready"
        known = any(replica.address.base_model == base_model for replica in list(self._by_id.values()))
        return "it does not answer" if known and reported == "ready" else reported

    async def refresh(self) -> None:
        """Brings the replicas up to date with the database."""
        found = self._configured | await to_thread.run_sync(self._registered)
        for replica_id, replica in list(self._by_id.items()):
            if found.get(replica_id) != replica.address:
                self._leaving.append(self._by_id.pop(replica_id))  # its streams may finish
        for replica_id, address in found.items():
            if replica_id not in self._by_id:
                self._by_id[replica_id] = Replica(
                    replica_id,
                    address,
                    self._settings.upstream_timeout,
                    has_priorities=replica_id not in self._configured,
                )
        done = [replica for replica in self._leaving if not replica.in_flight]
        self._leaving = [replica for replica in self._leaving if replica.in_flight]
        for replica in done:
            await replica.connection.close()

    async def _record_demand(self) -> None:
        """Writes down which base models are asked for or answering, each of them once in a few seconds."""
        now = time.monotonic()
        in_flight = Counter[str]()
        for replica in (*self._by_id.values(), *self._leaving):
            in_flight[replica.address.base_model] += replica.in_flight
        self._asked |= (+in_flight).keys()
        due = {name for name in self._asked if now >= self._demand_due_at.get(name, now)}
        if due:
            self._asked -= due
            self._demand_due_at |= dict.fromkeys(due, now + _DEMAND_EVERY_SECONDS)
            await to_thread.run_sync(self._write_demand, {name: in_flight[name] for name in due})

    def _write_demand(self, in_flight: Mapping[str, int]) -> None:
        with self._database.writer() as session:
            service.record_demand(session, self._gateway_id, in_flight)

    def _registered(self) -> dict[str, EngineAddress]:
        with self._database.reader() as session:
            engines = service.live_engines(session, self._settings)
        self._lent = {engine.base_model for engine in engines if engine.lends_device}
        return {
            engine.id: EngineAddress(
                base_model=engine.base_model, url=engine.url, api_key=SecretStr(engine.api_key)
            )
            for engine in engines
            if engine.status == "ready"
        }

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
                await self._record_demand()
            except SQLAlchemyError as error:
                log.warning(
                    "the database is away, so the engines stay as last known: %s", type(error).__name__
                )
            except Exception:  # this task must go on, whatever happens
                log.exception("the engines cannot be read")
            await asyncio.sleep(_REFRESH_SECONDS)

    async def _probe(self) -> None:
        while True:
            started = time.monotonic()
            await asyncio.gather(*(replica.probe() for replica in self._by_id.values()))
            for replica in self._by_id.values():
                if replica.is_down and self.ready(replica.address.base_model):
                    replica.abort_waits()
            await asyncio.sleep(max(0.0, started + _PROBE_EVERY_SECONDS - time.monotonic()))


def configured_id(address: EngineAddress) -> str:
    """Returns the id of an engine that the settings name; it is the same in every gateway."""
    return "engine_" + hashlib.sha256(address.url.encode()).hexdigest()[:24]


def _with_replica(error: ToqueError, replica: Replica) -> ToqueError:
    error.headers["x-toque-replica"] = replica.id
    return error
