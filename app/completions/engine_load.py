"""How busy engines are, by vLLM's own metrics and under their names."""

from __future__ import annotations

import asyncio
import re

from app.completions.replicas import Replica, Replicas

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
CACHE_USED = "vllm:kv_cache_usage_perc"
_LOAD = re.compile(rf"^({RUNNING}|{WAITING}|{CACHE_USED})\{{.*\}} (\S+)", re.M)


async def read_load(replica: Replica) -> dict[str, float]:
    """Returns an engine's load.

    Raises:
        ConnectionError: the engine cannot be reached.
        TimeoutError: the engine did not answer in time.
    """
    found = _LOAD.findall(await replica.connection.metrics())
    return {name: float(value) for name, value in found}


async def read_loads(replicas: Replicas) -> dict[Replica, dict[str, float]]:
    """Returns the load of all engines that are up and say it."""
    up = replicas.up()
    loads = await asyncio.gather(*(read_load(replica) for replica in up), return_exceptions=True)
    return {replica: load for replica, load in zip(up, loads, strict=True) if isinstance(load, dict)}
