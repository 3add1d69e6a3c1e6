"""A Ray cluster whose nodes and whose head can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import override

from benchmarks.ray_cluster import RayCluster
from tests.support.free_port import free_port
from tests.support.waiting import wait_until

GPUS = {"a": 2, "b": 2, "c": 1}
"""What each node declares."""


class MortalCluster(RayCluster):
    """Its head's state is in Redis, so that a new head goes on with it."""

    def __init__(self, redis: str, environment: Mapping[str, str]) -> None:
        self._redis = redis
        super().__init__(GPUS, environment)

    @override
    def start_head(self, **arguments: Any) -> None:
        """Starts a head; one that was killed before is replaced by it."""
        with _redis_address(self._redis):
            super().start_head(redis_password="", **arguments)

    def kill(self, name: str) -> None:
        """Kills a node's raylet, and nothing else: what ran below it has to end by itself."""
        raylet, node = self.raylet(name), self.nodes.pop(name)
        raylet.kill()
        raylet.wait()
        self.cluster.worker_nodes.discard(node)

    def kill_head(self) -> None:
        """Kills all that makes the head."""
        node = self.nodes.pop("head")
        for processes in node.all_processes.values():
            for info in processes:
                if info.process.poll() is None:
                    info.process.send_signal(signal.SIGKILL)
                    info.process.wait()


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """Debian's Redis, which keeps the head's state; yields its address."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        ready = "Ready to accept connections"
        wait_until(lambda: ready in (folder / "redis.log").read_text(), "Redis starts")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def _redis_address(address: str) -> Iterator[None]:
    """Ray takes the address of an outer Redis from the environment alone."""
    os.environ["RAY_REDIS_ADDRESS"] = address
    try:
        yield
    finally:
        del os.environ["RAY_REDIS_ADDRESS"]
