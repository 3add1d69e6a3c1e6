"""A Ray cluster on this machine: a head without GPUs, and nodes with GPUs that are only declared."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.support.free_port import free_port
from tests.support.waiting import wait_until

TOKEN = "0123456789abcdef0123456789abcdef"
GPUS = {"head": 0, "a": 2, "b": 2, "c": 1}
"""What each node declares."""
_OBJECT_STORE_BYTES = 80 * 2**20


class RayCluster:
    """Nodes by name. Their environment is what the nodes of a deployment have."""

    def __init__(self, redis: str, environment: Mapping[str, str]) -> None:
        from ray.cluster_utils import Cluster

        self._redis = redis
        self._environment = dict(environment)
        self._port = free_port()
        self.cluster: Any = Cluster(shutdown_at_exit=False)
        self.nodes: dict[str, Any] = {}
        self.start_head()

    @property
    def address(self) -> str:
        return f"{self.cluster.head_node.node_ip_address}:{self._port}"

    def start_head(self) -> None:
        """Starts a head, whose state is in Redis; one that was killed before is replaced by it."""
        self.cluster.head_node = None
        with _redis_address(self._redis):
            self.add("head", gcs_server_port=self._port, redis_password="")

    def add(self, name: str, **arguments: Any) -> None:
        """Starts a node, for the first time or after it was killed."""
        self.nodes[name] = self.cluster.add_node(
            num_cpus=8,
            num_gpus=GPUS[name],
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            include_log_monitor=False,
            env_vars=self._environment | {"FLEET_NODE": name},
            **arguments,
        )

    def processes_of(self, name: str) -> list[psutil.Process]:
        """What runs below a node's raylet."""
        return psutil.Process(self._raylet(name).pid).children(recursive=True)

    def kill(self, name: str) -> None:
        """Kills a node's raylet, and nothing else: what ran below it has to end by itself."""
        raylet, node = self._raylet(name), self.nodes.pop(name)
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

    def close(self) -> None:
        for node in list(self.nodes.values()):
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        self.nodes.clear()

    def _raylet(self, name: str) -> Any:
        return self.nodes[name].all_processes["raylet"][0].process


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
