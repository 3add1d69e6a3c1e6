"""The Ray actor around the process of a training worker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from app.core.child_environment import worker_environment
from app.core.settings import Settings
from workers.fleet.bound_process import BoundProcess
from workers.fleet.nodes import require_version

_STOP_SECONDS = 15.0
"""Enough for most checkpoints."""


class WorkerActor:
    """Holds GPUs for as long as a worker has jobs for them. It does nothing before `run` is called.

    Ray neither restarts it nor repeats its calls. If it dies, the lease of its job expires in the database,
    and another worker goes on.
    """

    def __init__(self, command: Sequence[str], version: str) -> None:
        """`command` runs a worker until it is idle.

        Raises:
            WrongVersionError: this node has another version of Toque than the fleet.
        """
        require_version(version)
        self._command = command
        self._process: BoundProcess | None = None

    async def await_place(self) -> None:
        """Returns once Ray has found room for the actor."""

    async def run(self) -> None:
        """Runs the worker until it is idle, then ends the actor. A fleet that starts anew calls it again."""
        if self._process is None:
            environment = worker_environment(Settings().tracker) | {"TOQUE_SHARED_DEVICE": ""}
            self._process = BoundProcess("worker", self._command, environment, _STOP_SECONDS)
        await asyncio.to_thread(self._process.wait)
        actor: Any = import_module("ray.actor")
        actor.exit_actor()
