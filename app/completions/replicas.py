"""The engines that this gateway may ask, found in the database and the settings, kept honest by probes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import TypeVar

from anyio import to_thread
from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError

from app.completions import service
from app.completions.vllm_client import RetryableError, VllmConnection, unreachable
from app.core.database import Database
from app.core.errors import ToqueError, UnavailableError
from app.core.settings import EngineAddress, Settings

log = logging.getLogger("toque.replicas")

T = TypeVar("T")

_ATTEMPTS = 2
_REFRESH_SECONDS = 1.0
_PROBE_EVERY_SECONDS = 2.0
_SILENCE_SECONDS = 5.0
"""A busy engine may miss a probe of two seconds; one that answers none for longer is stuck."""
_WARM_MODELS = 16
"""Adapters that an engine keeps in memory, see `workers.inference.vllm_process`."""
_WORTH_A_LOAD = 8
"""Requests that a warm replica may have more than the idlest; loading an adapter takes about 50 ms."""

_LOOK_SECONDS = 0.1
_RETRY_SECONDS = 5
_TRAINING_RETRY_SECONDS = 30
"""For a client that is refused because a job trains."""

_turns = count()


class Replica:
    """One engine, as this gateway knows it."""

    def __init__(self, replica_id: str, address: EngineAddress, read_timeout: float) -> None:
        self.id = replica_id
        self.address = address
        self.connection = VllmConnection(address.url, address.api_key.get_secret_value(), read_timeout)
        self.in_flight = 0
        self.is_out = False
        """It does not answer: asked again once it answers a probe."""
        self._waits: set[asyncio.Timeout] = set()
        self._warm: OrderedDict[str, None] = OrderedDict()
        self._answered_at = time.monotonic()
        self._turn = next(_turns)

    @property
    def load(self) -> tuple[int, int]:
        """Requests in flight; of equally idle replicas, the one that was asked longest ago comes first."""
        return self.in_flight, self._turn

    def is_warm(self, model: str) -> bool:
        """Whether it lately answered for that model."""
        return model in self._warm

    @contextmanager
    def serving(self) -> Generator[None]:
        """A request is in flight."""
        self.in_flight += 1
        self._turn = next(_turns)
        try:
            yield
        except RetryableError as unanswered:
            self.is_out = self.is_out or unanswered.is_gone
            raise
        finally:
            self.in_flight -= 1

    @asynccontextmanager
    async def patience(self) -> AsyncGenerator[None]:
        """The wait for an answer's first byte.

        Raises:
            RetryableError: the engine is stuck, and another is ready.
        """
        try:
            async with asyncio.timeout(None) as wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError as error:
            raise RetryableError(unreachable()) from error

    def give_up_waiting(self) -> None:
        """Ends the wait of the requests that may still go elsewhere."""
        for wait in self._waits:
            wait.reschedule(0)

    def has_answered(self, model: str) -> None:
        """It holds that model now."""
        self._warm[model] = None
        self._warm.move_to_end(model)
        if len(self._warm) > _WARM_MODELS:
            self._warm.popitem(last=False)

    async def probe(self) -> None:
        """Asks whether it is well, and takes it out or back."""
        try:
            is_out = not await self.connection.healthy()
            self._answered_at = time.monotonic()
        except TimeoutError:
            is_out = self.is_out or time.monotonic() - self._answered_at > _SILENCE_SECONDS
        if is_out != self.is_out:
            log.warning("engine %s %s", self.id, "does not answer, asked no more" if is_out else "is back")
        self.is_out = is_out


class Replicas:
    """All of them. Lives on the event loop's thread."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._by_id: dict[str, Replica] = {}
        self._leaving: list[Replica] = []
        self._lent: set[str] = set()
        """Base models with an engine that lets a job train on its device."""
        self._configured = {configured_id(address): address for address in settings.engine_urls}

    async def run(self) -> None:
        """Follows the database and probes the engines, until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._probe())

    async def close(self) -> None:
        """Ends every connection."""
        for replica in [*self._by_id.values(), *self._leaving]:
            await replica.connection.close()

    async def choose(self, base_model: str, model: str, *, exclude: Collection[Replica] = ()) -> Replica:
        """The replica to ask: the least loaded that has the model warm, else the least loaded.

        Raises:
            UnavailableError: none is ready, `but` for those given.
        """
        ready = self.ready(base_model, exclude)
        if not ready and not exclude:
            await self.refresh()  # perhaps one is, since a moment
            ready = self.ready(base_model, exclude)
        if not ready and not exclude:
            ready = await self._outwait_training(base_model)
        if not ready:
            raise await self._none_ready(base_model)
        idlest = min(ready, key=lambda replica: replica.load)
        warm = [replica for replica in ready if replica.is_warm(model)]
        if model == base_model or not warm:
            return idlest
        best = min(warm, key=lambda replica: replica.load)
        return best if best.in_flight <= idlest.in_flight + _WORTH_A_LOAD else idlest

    async def ask(self, base_model: str, model: str, question: Callable[[Replica], Awaitable[T]]) -> T:
        """What `question` gets from one replica or, if that gives not one byte, from another.

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
                    return await question(replica)
            except RetryableError as unanswered:
                others = self.ready(base_model, asked)
                if len(asked) == _ATTEMPTS or not others:
                    raise _named(unanswered.error, replica) from unanswered
            except ToqueError as error:
                raise _named(error, replica) from None

    def ready(self, base_model: str, exclude: Collection[Replica] = ()) -> list[Replica]:
        """Those of the base that answer."""
        return [
            replica
            for replica in list(self._by_id.values())  # at once, for other threads look too
            if replica.address.base_model == base_model and not replica.is_out and replica not in exclude
        ]

    async def _outwait_training(self, base_model: str) -> list[Replica]:
        """Those that answer once a trainer has given their device back, if that is soon enough."""
        until = time.monotonic() + self._settings.engine_wait_seconds
        while base_model in self._lent and time.monotonic() < until:
            await asyncio.sleep(_LOOK_SECONDS)
            if ready := self.ready(base_model):
                return ready
        return []

    def count_ready(self) -> dict[str, int]:
        """How many answer, by base model."""
        return Counter(
            replica.address.base_model for replica in list(self._by_id.values()) if not replica.is_out
        )

    def status(self, base_model: str, reported: str) -> str:
        """`ready`, or why not: from what engines report of themselves and from whether they answer."""
        if self.ready(base_model):
            return "ready"
        known = any(replica.address.base_model == base_model for replica in list(self._by_id.values()))
        return "it does not answer" if known and reported == "ready" else reported

    async def refresh(self) -> None:
        """Takes in what the database says now."""
        found = self._configured | await to_thread.run_sync(self._registered)
        for replica_id, replica in list(self._by_id.items()):
            if found.get(replica_id) != replica.address:
                self._leaving.append(self._by_id.pop(replica_id))  # its streams may end
        for replica_id, address in found.items():
            if replica_id not in self._by_id:
                self._by_id[replica_id] = Replica(replica_id, address, self._settings.upstream_timeout)
        done = [replica for replica in self._leaving if not replica.in_flight]
        self._leaving = [replica for replica in self._leaving if replica.in_flight]
        for replica in done:
            await replica.connection.close()

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
            except SQLAlchemyError as error:
                log.warning("engines as last known, the database is away: %s", type(error).__name__)
            except Exception:  # one that follows no more would be worse
                log.exception("the engines cannot be read")
            await asyncio.sleep(_REFRESH_SECONDS)

    async def _probe(self) -> None:
        while True:
            started = time.monotonic()
            await asyncio.gather(*(replica.probe() for replica in self._by_id.values()))
            for replica in self._by_id.values():
                if replica.is_out and self.ready(replica.address.base_model):
                    replica.give_up_waiting()
            await asyncio.sleep(max(0.0, started + _PROBE_EVERY_SECONDS - time.monotonic()))


def configured_id(address: EngineAddress) -> str:
    """Of an engine that has no row: the same in every gateway."""
    return "engine_" + hashlib.sha256(address.url.encode()).hexdigest()[:24]


def _named(error: ToqueError, replica: Replica) -> ToqueError:
    error.headers["x-toque-replica"] = replica.id
    return error
