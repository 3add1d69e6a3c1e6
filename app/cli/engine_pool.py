"""The engines of `toque serve`: one for each base model that is asked for, within the machine's memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import psutil
from sqlalchemy.orm import Session

from app.base_models.memory import engine_bytes, memory_for_engines
from app.cli.supervisor import Program, Supervisor
from app.completions import service as completions_service
from app.completions.engine_choice import Candidate, choose_engines
from app.core.database import Database
from app.core.settings import BaseModelEntry, Settings
from app.fine_tuning import worker_registry
from app.models.catalogue import Catalogue, is_prepared

_POLL_SECONDS = 1.0


class EnginePool:
    """Starts and stops engines as base models are asked for."""

    def __init__(
        self,
        settings: Settings,
        supervisor: Supervisor,
        program: Callable[[BaseModelEntry, bool], Program],
        say: Callable[[str], None],
    ) -> None:
        """`program` makes the program of a base model's engine, of the default one or not; `say` gets
        messages.
        """
        self._settings = settings
        self._supervisor = supervisor
        self._program = program
        self._say = say
        self._database = Database(settings.sqlalchemy_url)
        self._programs: dict[str, Program] = {}

    async def run(self) -> None:
        """Follow what is asked for, until cancelled."""
        try:
            while True:
                try:
                    await self._follow(await asyncio.to_thread(self._choose))
                except Exception as error:  # this must go on, whatever happens; the engines stay as they are
                    problem = str(error) or type(error).__name__
                    self._say(f"cannot tell which engines are needed: {problem}".splitlines()[0])
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            self._database.dispose()

    async def _follow(self, chosen: list[tuple[BaseModelEntry, bool]]) -> None:
        """Stop the engines that are not chosen, then start those that are, since memory is freed first."""
        names = {entry.name for entry, _ in chosen}
        for name in [name for name in self._programs if name not in names]:
            self._say(f"the engine of {name} is not needed now, or its memory is: stopping it")
            await self._supervisor.stop(self._programs.pop(name))
        for entry, is_default in chosen:
            if entry.name not in self._programs:
                self._programs[entry.name] = self._program(entry, is_default)
                self._supervisor.start(self._programs[entry.name])

    def _choose(self) -> list[tuple[BaseModelEntry, bool]]:
        """Return the base models that shall have an engine, and whether each is the default one."""
        with self._database.reader() as session:
            catalogue = Catalogue.read(session, self._settings)
            gpu_bytes, memory_bytes = self._memory(session)
            unverified = completions_service.unverified_seconds(session)
            idle = completions_service.idle_seconds(session, unverified)
            served_elsewhere = completions_service.served_bases(session, self._settings) - set(self._programs)
            default = catalogue.engine_base
            candidates = [
                Candidate(
                    entry.name,
                    engine_bytes(self._settings, entry, gpu_bytes),
                    idle.get(entry.name, float("inf")),
                    has_unverified=entry.name in unverified,
                    is_default=entry == default,
                )
                for entry in catalogue.entries
                if entry == default
                or (is_prepared(self._settings, entry) and entry.name not in served_elsewhere)
            ]
        names = choose_engines(candidates, self._programs, self._settings.engine_idle_seconds, memory_bytes)
        return [(catalogue.get(name), name == default.name) for name in names]

    def _memory(self, session: Session) -> tuple[int | None, int]:
        """Return the GPU's memory, None if there is no GPU, and what engines may take, in bytes.

        The worker of this machine knows both.
        """
        workers = worker_registry.alive(session, self._settings.heartbeat_seconds)
        here = next((worker for worker in workers if worker.hostname == socket.gethostname()), None)
        total = (here and here.device_memory_bytes) or psutil.virtual_memory().total
        gpu_bytes = total if here and not here.device.startswith("CPU") else None
        return gpu_bytes, memory_for_engines(self._settings, gpu_bytes, total)
