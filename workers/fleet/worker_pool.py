"""The workers of a fleet: started as jobs wait for them; each ends by itself when no job is left for it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app import __version__
from app.core.database import new_id
from workers.fleet.cluster import Cluster
from workers.fleet.worker_actor import WorkerActor

log = logging.getLogger("toque.fleet")

_PREFIX = "toque-worker"


@dataclass(slots=True)
class _Member:
    """A worker's actor, as this process sees it."""

    name: str
    gpus: int
    actor: Any
    call: Any
    """Reference to the result of its current call: of `await_place`, then of `run`."""
    runs: bool = False
    """Whether it was told to run, and so may have a job."""


class WorkerPool:
    """Starts a worker for each job that waits, within limits.

    What exists is read from Ray, so a fleet that starts anew goes on with the workers of the one before. No
    worker that may have a job is stopped: only those for which Ray has found no room yet are given up.
    """

    def __init__(self, cluster: Cluster, command: Sequence[str], most: int) -> None:
        """`command` runs a worker until it is idle and takes `--gpus=N`; `most` limits their number."""
        self._ray = cluster.ray
        self._resource = cluster.resource
        self._command = command
        self._most = most
        self._members: dict[str, _Member] = {}

    def follow(self, claimable: Mapping[int, int], running: Mapping[int, int]) -> None:
        """Starts and gives up workers.

        Args:
            claimable: how many jobs wait, by the number of GPUs that they ask for.
            running: how many jobs are running, whoever runs them.
        """
        self._find_members()
        present = Counter(member.gpus for member in self._members.values())
        for gpus in sorted({*present, *claimable}):
            needed = claimable.get(gpus, 0) + min(running.get(gpus, 0), present[gpus])
            for _ in range(min(needed - present[gpus], self._most - len(self._members))):
                self._start(gpus)
            self._give_up(gpus, present[gpus] - needed)

    def wait(self, seconds: float) -> None:
        """Waits until a worker has got its place or has ended, and has the former run; but not for longer."""
        members = {member.call: member for member in self._members.values()}
        if not members:
            time.sleep(seconds)
            return
        done, _ = self._ray.wait(list(members), timeout=seconds)
        for call in done:
            self._advance(members[call])

    def _find_members(self) -> None:
        """Adopts the workers that another process has started, or that could not be reached for a moment.

        Any of them may have a job already, so each is told to run, which changes nothing if it does.
        """
        for name in self._ray.util.list_named_actors():
            prefix, _, gpus = name.rpartition("-")[0].rpartition("-")
            if prefix == _PREFIX and name not in self._members:
                try:
                    actor = self._ray.get_actor(name)
                except ValueError:  # it has ended just now
                    continue
                self._members[name] = _Member(name, int(gpus), actor, actor.run.remote(), runs=True)

    def _start(self, gpus: int) -> None:
        name = f"{_PREFIX}-{gpus}-{new_id('')}"
        # An actor's GPUs are always on one node, so a job on several needs no placement group.
        places = {"num_gpus": gpus, "num_cpus": 0} if self._resource == "GPU" else {"num_cpus": gpus}
        actor = (
            self._ray.remote(WorkerActor)
            .options(name=name, lifetime="detached", max_restarts=0, max_task_retries=0, **places)
            .remote([*self._command, f"--gpus={gpus}"], __version__)
        )
        self._members[name] = _Member(name, gpus, actor, actor.await_place.remote())
        log.info("%s waits for %d %s", name, gpus, self._resource)

    def _advance(self, member: _Member) -> None:
        try:
            self._ray.get(member.call)
        except self._ray.exceptions.RayError as error:
            log.info("%s has ended: %s", member.name, str(error).strip().splitlines()[0])
            del self._members[member.name]
        else:
            log.info("%s begins", member.name)
            member.call, member.runs = member.actor.run.remote(), True

    def _give_up(self, gpus: int, surplus: int) -> None:
        """Ends workers that wait for room, since there are fewer jobs than workers."""
        waiting = [each for each in self._members.values() if each.gpus == gpus and not each.runs]
        for member in waiting[: max(0, surplus)]:
            log.info("%s is not needed any more", member.name)
            self._ray.kill(member.actor)
            del self._members[member.name]
