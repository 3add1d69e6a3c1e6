"""The replica of a Ray Serve deployment around the process of an engine."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from app.core.child_environment import engine_environment
from app.core.settings import Settings
from workers.fleet.bound_process import BoundProcess
from workers.fleet.nodes import require_version

DRAIN_SECONDS = 120.0
"""Time for unfinished answers when the settings name none."""
STOP_SECONDS = 30.0
"""Time that an engine takes to stop besides."""


class EngineEndedError(Exception):
    """The engine's process has ended, so Serve shall replace the replica."""


class EngineReplica:
    """Holds a GPU for an engine. It serves nothing itself: gateways find the engine in the database."""

    def __init__(self, command: Sequence[str], base_model: str, version: str) -> None:
        """Starts the engine; that it is ready is for the engine to report.

        Raises:
            WrongVersionError: this node has another version of Toque than the fleet.
        """
        require_version(version)
        drain_seconds = Settings().engine_drain_seconds or DRAIN_SECONDS
        address = _free_address()
        environment = engine_environment() | {
            "TOQUE_ENGINE_BASE_MODEL": base_model,
            "TOQUE_ENGINE_LISTEN": address,
            "TOQUE_ENGINE_URL": f"http://{address}",
            "TOQUE_ENGINE_DRAIN_SECONDS": str(drain_seconds),
            "TOQUE_SHARED_DEVICE": "",
        }
        self._process = BoundProcess("engine", command, environment, drain_seconds + STOP_SECONDS)

    def check_health(self) -> None:
        """Is called by Serve every few seconds.

        Raises:
            EngineEndedError: the engine has ended.
        """
        if (code := self._process.poll()) is not None:
            raise EngineEndedError(f"the engine ended with exit code {code}")

    def __del__(self) -> None:
        """Lets the engine finish its answers; Serve calls it when the replica is not needed any more."""
        if hasattr(self, "_process"):
            self._process.stop()


def _free_address() -> str:
    """Returns this node's address for others, with a port that is free."""
    util: Any = import_module("ray.util")
    host: str = util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"
