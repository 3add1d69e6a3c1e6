"""How many requests in the background are sent to the engines of a base model at once.

An engine computes as many sequences as fit into its cache and its batch. That depends on the model, the
device and the requests, so the engines are asked: so many requests are in flight that a few wait.
"""

from __future__ import annotations

import asyncio
import logging

from anyio import CapacityLimiter

from app.completions.engine_load import RUNNING, WAITING, read_load
from app.completions.replicas import Replica, Replicas

log = logging.getLogger("toque.background")

_LOOK_SECONDS = 1.0
_FIRST = 32
"""Requests in flight at one engine until it has been asked."""
_MOST = 1024
"""The most requests in flight at one engine; what vLLM computes at once by default on a large GPU."""
_LEAST_WAITING = 8


class BackgroundLoad:
    """The limits of this process, one for each base model."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._limiters: dict[str, CapacityLimiter] = {}

    def limiter(self, base_model: str) -> CapacityLimiter:
        """Return what requests of all batches for the base model take turns by."""
        if base_model not in self._limiters:
            self._limiters[base_model] = CapacityLimiter(_FIRST)
        return self._limiters[base_model]

    async def run(self) -> None:
        """Adjust the limits until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for base_model, limiter in list(self._limiters.items()):  # batches add to them meanwhile
                if limiter.borrowed_tokens:
                    limits = [await self._limit(each) for each in self._replicas.ready(base_model)]
                    limiter.total_tokens = sum(limits) or _FIRST

    async def _limit(self, replica: Replica) -> int:
        """Return how many requests shall be in flight at the engine: as many as it computes, and a few."""
        in_flight = replica.in_flight  # before the engine counts, which cannot count what is sent later
        try:
            load = await read_load(replica)
        except (TimeoutError, ConnectionError, ValueError):
            return max(_FIRST, in_flight)  # it is busy, or does not say
        waiting = int(load.get(WAITING, 0))
        wanted = _LEAST_WAITING + int(load.get(RUNNING, 0)) // 2
        return min(_MOST, max(_FIRST, in_flight + wanted - waiting))
