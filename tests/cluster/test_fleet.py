"""Workers and engines that come and go with the work, and a head that dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from tests.cluster import stand_in_fleet
from tests.cluster.deployment import ROOT, Deployment, node_environment
from tests.cluster.work import ask, asking, create_job, seconds, succeed, trained, upload, weights
from tests.support.waiting import wait_until

FLEET = stand_in_fleet.COMMAND


def most_at_once(ledger: list[dict[str, Any]]) -> dict[tuple[str, int], int]:
    """By GPU: how many workers held it at the same time, at most."""
    held: dict[tuple[str, int], int] = {}
    most: dict[tuple[str, int], int] = {}
    for line in ledger:
        for gpu in line["gpus"]:
            place = line["node"], gpu
            held[place] = held.get(place, 0) + (1 if line["event"] == "begins" else -1)
            most[place] = max(most.get(place, 0), held[place])
    return most


def test_a_wrong_token_is_refused(deployment: Deployment) -> None:
    environment = node_environment(deployment.settings) | {"RAY_AUTH_TOKEN": "f" * 32}
    refused = subprocess.run(
        [sys.executable, "-m", "app.cli.main", "fleet", f"--address={deployment.cluster.address}"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert refused.returncode == os.EX_CONFIG, refused
    assert "refuses the token" in refused.stdout


def test_a_worker_comes_with_a_job_and_goes_after_it(deployment: Deployment) -> None:
    file = upload(deployment)
    deployment.become_idle()
    created = time.monotonic()
    job = create_job(deployment, file)
    wait_until(lambda: deployment.job(job).status != "queued", "a worker takes the job", seconds=120)
    waited = time.monotonic() - created
    succeed(deployment, [job], seconds(60))
    ended = time.monotonic()
    wait_until(lambda: not deployment.workers(), "the worker ends", seconds=seconds(60))
    print(f"0 -> 1 worker in {waited:.1f} s, idle -> 0 in {time.monotonic() - ended:.1f} s")
    assert waited <= seconds(10)
    assert weights(deployment, job) == trained(10)


def test_sixty_jobs_share_the_gpus(deployment: Deployment) -> None:
    file = upload(deployment)
    before = len(deployment.ledger())
    jobs = [create_job(deployment, file, gpus=2 if number % 6 == 0 else 1) for number in range(60)]
    succeed(deployment, jobs, seconds(240))
    ledger = deployment.ledger()[before:]
    held = most_at_once(ledger)
    assert set(held.values()) == {1}
    assert held.keys() <= {("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0)}
    assert len(held) >= 4, "an engine may have one, to which models are compared"
    assert {deployment.job(job).lease_epoch for job in jobs} == {1}
    assert {weights(deployment, job) for job in jobs} == {trained(10)}
    finished = time.monotonic()
    wait_until(lambda: not deployment.workers(), "the workers end", seconds=seconds(60))
    print(f"60 jobs' workers -> 0 in {time.monotonic() - finished:.1f} s")


def test_engines_follow_the_requests(deployment: Deployment) -> None:
    deployment.become_idle()

    def ready() -> int:
        return sum(engine.status == "ready" for engine in deployment.engines())

    asked = time.monotonic()
    assert ask(deployment) == "Leek."
    print(f"first answer after {time.monotonic() - asked:.1f} s without an engine")
    with asking(deployment, 1) as failures:
        with asking(deployment, 7) as more_failures:
            wait_until(lambda: ready() == 2, "a second engine is ready", seconds=seconds(60))
        wait_until(lambda: ready() == 1, "one engine is enough again", seconds=seconds(90))
    assert failures == more_failures == []
    deployment.become_idle()


def test_the_head_is_killed_and_nobody_notices(deployment: Deployment) -> None:
    file = upload(deployment)
    ask(deployment)
    jobs = [create_job(deployment, file, epochs=30) for _ in range(2)]
    wait_until(
        lambda: all(deployment.job(job).status == "running" for job in jobs), "they run", seconds=seconds(60)
    )
    with asking(deployment, 2) as failures:
        deployment.cluster.kill_head()
        later = create_job(deployment, file)
        time.sleep(5)  # the time that somebody takes to start another head
        deployment.cluster.start_head()
        succeed(deployment, [*jobs, later], seconds(240))
    assert failures == []
    assert {deployment.job(job).lease_epoch for job in jobs} == {1}
    assert weights(deployment, jobs[0]) == trained(300)
