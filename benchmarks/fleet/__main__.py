"""Jobs per second of a Ray fleet with one, two and four workers: `python -m benchmarks.fleet [--rounds 2]`.

In every round, fleets of each size train 200 jobs, one fleet after another, in the opposite order every
second round. Cluster, fleet, workers, PostgreSQL and storage are real; the API does not run. The trainer is a
stand-in: a job waits for half a second, with two steps and a checkpoint, so that two cores are enough for
four workers. What is measured is what the queue, claims, leases, publication and placing cost as workers are
added, and not training.

Workers take a while to start. So jobs are counted from when each worker has ended one until the last is
claimed: no worker starts or waits in that time. The time to the first claim is that from the commit which
queues the jobs in a fleet without workers, and the time to no worker that from the end of the last job; of
this, a worker waits for another job for `TOQUE_WORKER_IDLE_SECONDS`, here 5.

A ratio is the jobs per second of a fleet, divided by those of one worker in the same round and by the number
of workers; the median over the rounds counts. The last line is one JSON object; the exit code is 1 if a
target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from itertools import pairwise
from typing import Any

from app.fine_tuning.models import FineTuningJob
from benchmarks.fleet.deployment import POLL_SECONDS, Deployment, running_deployment
from benchmarks.fleet.trainer import STEP_SECONDS, STEPS
from benchmarks.rounds import print_medians

SIZES = (1, 2, 4)
LEAST_RATIO, MOST_SECONDS_TO_CLAIM, MOST_SECONDS_TO_NONE = 0.9, 10.0, 60.0
RATE, TO_CLAIM, TO_NONE = "jobs a second", "seconds to the first claim", "seconds to no worker"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=200, help="of each fleet in each round")
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {_name(size): [] for size in SIZES}
    with running_deployment() as deployment:
        for number in range(options.rounds):
            for size in SIZES if number % 2 == 0 else reversed(SIZES):
                figures = measure(deployment, size, options.jobs)
                results[_name(size)].append(figures)
                said = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
                print(f"{number + 1}/{options.rounds} {_name(size)}: {said}", file=sys.stderr, flush=True)
    summary = summarize(results, options.jobs)
    print(json.dumps(summary))
    sys.exit(not summary["passed"])


def measure(deployment: Deployment, workers: int, count: int) -> dict[str, float]:
    """Has a fleet of so many workers train so many jobs, and waits until it has none; returns the figures."""
    with deployment.fleet(workers):
        queued_at = deployment.queue(count)
        while deployment.count_unfinished():
            time.sleep(POLL_SECONDS)
        while deployment.count_workers():
            time.sleep(POLL_SECONDS)
        none_at = time.time()
    jobs = deployment.jobs(queued_at)
    assert [(job.status, job.lease_epoch) for job in jobs] == [("succeeded", 1)] * count
    by_worker: dict[str | None, list[FineTuningJob]] = defaultdict(list)
    for job in sorted(jobs, key=_claimed_at):
        by_worker[job.worker_id].append(job)
    assert len(by_worker) == workers, "a worker had no job, or was replaced"

    # From when each worker has ended its first job until the last is claimed, no worker starts or waits.
    begin = max(_ended_at(own[0]) for own in by_worker.values())
    end = max(map(_claimed_at, jobs))
    ended = sum(begin < _ended_at(job) <= end for job in jobs)
    pauses = [
        _claimed_at(following) - _ended_at(job)
        for own in by_worker.values()
        for job, following in pairwise(own)
    ]
    return {
        RATE: ended / (end - begin),
        "seconds from claim to end": statistics.median(_ended_at(job) - _claimed_at(job) for job in jobs),
        "seconds from end to next claim": statistics.median(pauses),
        TO_CLAIM: min(map(_claimed_at, jobs)) - queued_at,
        TO_NONE: none_at - max(map(_ended_at, jobs)),
    }


def summarize(results: dict[str, list[dict[str, float]]], jobs: int) -> dict[str, Any]:
    """Prints the table; returns what the last line says."""
    medians = print_medians(results)
    rates = {name: [figures[RATE] for figures in rounds] for name, rounds in results.items()}
    ratios = {
        size: [many / (size * one) for one, many in zip(rates[_name(1)], rates[_name(size)], strict=True)]
        for size in SIZES[1:]
    }
    ratio = {size: round(statistics.median(values), 3) for size, values in ratios.items()}
    to_claim = max(figures[TO_CLAIM] for rounds in results.values() for figures in rounds)
    to_none = max(figures[TO_NONE] for rounds in results.values() for figures in rounds)
    return {
        "passed": (
            min(ratio.values()) >= LEAST_RATIO
            and to_claim <= MOST_SECONDS_TO_CLAIM
            and to_none <= MOST_SECONDS_TO_NONE
        ),
        **{f"ratio_{size}": value for size, value in ratio.items()},
        "spread": {
            f"ratio_{size}": [round(min(values), 3), round(max(values), 3)] for size, values in ratios.items()
        },
        "jobs_per_second": {name: figures[RATE] for name, figures in medians.items()},
        "seconds_to_first_claim": round(to_claim, 1),
        "seconds_to_no_worker": round(to_none, 1),
        "jobs": jobs,
        "job_seconds": STEPS * STEP_SECONDS,
        "rounds": len(next(iter(results.values()))),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
    }


def _claimed_at(job: FineTuningJob) -> float:
    assert job.started_at is not None
    return job.started_at


def _ended_at(job: FineTuningJob) -> float:
    assert job.finished_at is not None
    return job.finished_at


def _name(workers: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)}"


if __name__ == "__main__":
    main()
