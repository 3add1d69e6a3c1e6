"""A Ray cluster on this machine: a head without GPUs, and nodes with GPUs that are only declared."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

_ROOT = Path(__file__).parents[1]
TOKEN = "0123456789abcdef0123456789abcdef"
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
    "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
}
"""What is set for every node, and for the process that starts them."""
_OBJECT_STORE_BYTES = 80 * 2**20


class RayCluster:
    """Nodes by name. Their environment is what the nodes of a deployment have."""

    def __init__(self, gpus: Mapping[str, int], environment: Mapping[str, str]) -> None:
        """Starts the head; `gpus` is what each node declares that is not the head."""
        os.environ |= RAY_ENVIRONMENT
        from ray.cluster_utils import Cluster

        self._gpus = gpus
        self._environment = {**environment, **RAY_ENVIRONMENT}
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port: int = listener.getsockname()[1]
        self.cluster: Any = Cluster(shutdown_at_exit=False)
        self.nodes: dict[str, Any] = {}
        self.start_head()

    @property
    def address(self) -> str:
        return f"{self.cluster.head_node.node_ip_address}:{self._port}"

    def start_head(self, **arguments: Any) -> None:
        """Starts a head at the cluster's address."""
        self.cluster.head_node = None
        self.add("head", gcs_server_port=self._port, **arguments)

    def add(self, name: str, **arguments: Any) -> None:
        """Starts a node, for the first time or after it has ended."""
        self.nodes[name] = self.cluster.add_node(
            num_cpus=8,
            num_gpus=self._gpus.get(name, 0),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            include_log_monitor=False,
            env_vars=self._environment | {"FLEET_NODE": name},
            **arguments,
        )

    def processes_of(self, name: str) -> list[psutil.Process]:
        """Returns what runs below a node's raylet."""
        return psutil.Process(self.raylet(name).pid).children(recursive=True)

    def raylet(self, name: str) -> Any:
        """Returns the process of a node that starts all others there."""
        return self.nodes[name].all_processes["raylet"][0].process

    def close(self) -> None:
        """Ends all nodes, and what runs on them."""
        below: list[psutil.Process] = []
        for name in self.nodes:
            with suppress(psutil.NoSuchProcess):
                below += self.processes_of(name)
        for node in self.nodes.values():
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        for process in below:  # Ray's agents would stay for some minutes
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(below)
        self.nodes.clear()
