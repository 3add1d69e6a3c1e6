"""A node that leaves in order: its jobs lose nothing, and nobody who asks notices."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import psutil

from tests.cluster import stand_in_fleet
from tests.cluster.deployment import ROOT, Deployment, alive, node_environment
from tests.cluster.work import ask, asking, create_job, seconds, succeed, trained, upload, weights
from tests.support.waiting import wait_until

FLEET = stand_in_fleet.COMMAND
EPOCHS = 50


def drain(deployment: Deployment, node_id: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli.main", "drain", "--within=100s", f"--node-id={node_id}"],
        env=node_environment(deployment.settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def leave(deployment: Deployment, process: psutil.Process) -> list[psutil.Process]:
    """Drains the node that a process runs on, and replaces it; returns what had run below its actors."""
    name = process.environ()["FLEET_NODE"]
    bereaved = [each for each in deployment.processes() if each.environ()["FLEET_NODE"] == name]
    drained = drain(deployment, deployment.cluster.nodes[name].node_id)
    assert (drained.returncode, drained.stderr) == (0, "")
    assert not alive(bereaved)
    deployment.cluster.kill(name)
    deployment.cluster.add(name)
    return bereaved


def test_a_job_goes_on_where_it_was(deployment: Deployment) -> None:
    job = create_job(deployment, upload(deployment), epochs=EPOCHS)
    wait_until(lambda: deployment.job(job).recorded_step >= 20, "it trains", seconds=seconds(120))
    worker = deployment.process_of(job)
    assert worker in leave(deployment, worker)
    succeed(deployment, [job], seconds(120))
    assert (deployment.job(job).attempts_failed, deployment.job(job).deaths) == (0, 0)
    assert weights(deployment, job) == trained(10 * EPOCHS)
    with deployment.client() as client:
        events: list[Any] = list(client.fine_tuning.jobs.list_events(job, limit=100))[::-1]
    resumed = [re.search(r"resumed at step (\d+)", event.message) for event in events]
    (at,) = (index for index, found in enumerate(resumed) if found)
    trained_before = [event.data["step"] for event in events[:at] if event.type == "metrics"]
    assert int(resumed[at][1]) == max(trained_before) >= 20


def test_an_engine_finishes_its_answers_elsewhere_others_begin(deployment: Deployment) -> None:
    ask(deployment)
    with asking(deployment, 2) as failures:
        engine = wait_until(lambda: deployment.find("engine"), "there is an engine")
        assert engine in leave(deployment, engine)
        ask(deployment)
    assert failures == []


def test_no_node_is_left_by_mistake(deployment: Deployment) -> None:
    refused = drain(deployment, "f" * 56)
    assert (refused.returncode, refused.stderr) == (
        os.EX_UNAVAILABLE,
        "drain: no such node of a Ray cluster runs on this machine\n",
    )
