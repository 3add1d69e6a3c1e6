"""One engine as a gateway sees it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

from app.completions.vllm_client import RetryableError, VllmConnection, unreachable
from app.core.settings import EngineAddress

log = logging.getLogger("toque.replicas")

_DOUBT_SECONDS = 3.0
"""An engine of which nothing was heard for this long is probed, if it has requests of ours."""
_STUCK_SECONDS = 5.0
"""An engine that answers nothing for this long is stuck; a busy one may miss a single probe."""


class Replica:
    """One engine: its address, its load, and whether it answers."""

    def __init__(
        self, replica_id: str, address: EngineAddress, read_timeout: float, *, is_ours: bool
    ) -> None:
        self.id = replica_id
        self.address = address
        self.is_ours = is_ours
        """Whether the engine is ours: it reports itself, and lets requests with a `priority` wait for those
        without."""
        self.connection = VllmConnection(address.url, address.api_key.get_secret_value(), read_timeout)
        self.in_flight = 0
        """Requests of this gateway."""
        self.in_flight_elsewhere = 0
        """Requests of other gateways, as of the engine's last report."""
        self.adapters: frozenset[str] = frozenset()
        """Adapters in the engine's memory, as of its last report."""
        self.is_down = False
        """Whether the engine is down; it gets no requests until it answers a probe again."""
        self.is_in_doubt = False
        """Whether a request has failed there since the engine was last probed."""
        self._first_byte_waits: set[asyncio.Timeout] = set()
        self._heard_at = time.monotonic()
        self._reported_at = 0.0

    @property
    def needs_probe(self) -> bool:
        """Returns whether only a probe can tell if the engine is there."""
        is_silent = self.in_flight > 0 and time.monotonic() - self._heard_at > _DOUBT_SECONDS
        return not self.is_ours or self.is_down or self.is_in_doubt or is_silent

    def heard(self) -> None:
        """Records a sign of life: a report or an answer."""
        self._heard_at = time.monotonic()

    def take_report(self, at: float, requests: int, adapters: Iterable[str]) -> None:
        """Takes over the engine's report of that time: its requests, of all gateways, and its adapters."""
        if at == self._reported_at:
            return
        self._reported_at = at
        self.heard()
        self.in_flight_elsewhere = max(0, requests - self.in_flight)
        self.adapters = frozenset(adapters)

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
        self.heard()

    def abort_waits(self) -> None:
        """Ends the waits of `awaiting_first_byte`, so that these requests go to another engine."""
        for wait in self._first_byte_waits:
            wait.reschedule(0)

    async def probe(self) -> None:
        """Checks the engine's health, and marks it as down or up."""
        try:
            is_down = not await self.connection.healthy()
            self.is_in_doubt = False
            self.heard()
        except TimeoutError:
            is_down = self.is_down or time.monotonic() - self._heard_at > _STUCK_SECONDS
        if is_down != self.is_down:
            log.warning(
                "engine %s %s", self.id, "does not answer and gets no more requests" if is_down else "is back"
            )
        self.is_down = is_down
