"""Nodes, actors and processes that are killed: what ran below them ends, and what was lost comes back."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil

from tests.cluster import stand_in_fleet
from tests.cluster.deployment import Deployment, alive
from tests.cluster.work import asking, create_job, seconds, succeed, trained, upload, weights
from tests.support.waiting import wait_until

FLEET = stand_in_fleet.COMMAND
EPOCHS = 50
VICTIMS = ("worker", "its actor", "node", "engine", "its replica")


def test_nothing_outlives_its_node_or_its_parent_in_twenty_kills(deployment: Deployment) -> None:
    file = upload(deployment)
    jobs = list[str]()
    with asking(deployment, 1):  # so that there is an engine; what it is asked as it dies may fail
        for number in range(20):
            _keep_busy(deployment, file, jobs)
            victim = VICTIMS[number % len(VICTIMS)]
            bereaved = _kill(deployment, victim)
            began = time.monotonic()
            wait_until(lambda gone=bereaved: not alive(gone), f"what was below a {victim} ends")
            print(f"{victim}: {len(bereaved)} processes ended within {time.monotonic() - began:.1f} s")
    succeed(deployment, jobs, seconds(240))
    assert {weights(deployment, job) for job in jobs} == {trained(10 * EPOCHS)}
    deployment.become_idle()
    wait_until(lambda: not deployment.processes(), "no process is left", seconds=seconds(30))


def _keep_busy(deployment: Deployment, file: str, jobs: list[str]) -> None:
    """Adds jobs until two are unfinished."""
    while sum(deployment.job(job).status in ("queued", "running") for job in jobs) < 2:
        jobs.append(create_job(deployment, file, epochs=EPOCHS))


def _kill(deployment: Deployment, victim: str) -> list[psutil.Process]:
    """Kills one; returns what had it as an ancestor."""
    role = "engine" if victim in ("engine", "its replica") else "worker"
    while True:
        process = wait_until(lambda: deployment.find(role), f"there is a {role}", seconds=seconds(90))
        with suppress(psutil.NoSuchProcess):  # it has just ended by itself
            if victim == "node":
                return _kill_node(deployment, process.environ()["FLEET_NODE"])
            if victim.startswith("its"):
                process = psutil.Process(process.ppid())
            bereaved = process.children(recursive=True)
            process.kill()
            return bereaved


def _kill_node(deployment: Deployment, name: str) -> list[psutil.Process]:
    """Kills a node, and starts it anew."""
    bereaved = deployment.cluster.processes_of(name)
    deployment.cluster.kill(name)
    deployment.cluster.add(name)
    return bereaved
