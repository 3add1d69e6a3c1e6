"""Which deaths count against a job: only those in a row that left no newer checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import update
from sqlalchemy.orm import Session

from app.core.database import Database
from app.core.lease import Lease, LeaseLostError
from app.fine_tuning import queue
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import FineTuningJob
from tests.support.jobs import create
from tests.support.service import BASE_MODEL


def write(database: Database, work: Callable[[Session], Any]) -> Any:
    with database.writer() as session:
        return work(session)


def claim(database: Database, worker: str = "worker_a") -> Lease | None:
    job = write(database, lambda s: claim_next(s, worker, [BASE_MODEL], 60.0))
    return queue.LEASES.lease_of(job) if job else None


def claimed(database: Database) -> Lease:
    """The next attempt, once its wait is over."""
    write(database, lambda s: s.execute(update(FineTuningJob).values(not_before=0.0)))
    lease = claim(database)
    assert lease is not None
    return lease


def vanish(database: Database, _: Lease) -> None:
    """The machine is gone, and the lease expires."""
    write(database, lambda s: s.execute(update(FineTuningJob).values(lease_until=0.0)))
    assert write(database, lambda s: queue.reclaim_expired(s, 60.0)) == 1


def crash(database: Database, lease: Lease) -> None:
    """The trainer dies, and its worker says so."""
    write(database, lambda s: queue.retry(s, lease, "It crashed", code="trainer_died", retry_seconds=60.0))


def save(database: Database, lease: Lease, step: int) -> None:
    write(database, lambda s: queue.record_saved(s, lease, step))


def newest_message(client: OpenAI, job_id: str) -> str:
    return client.fine_tuning.jobs.list_events(job_id).data[0].message


@pytest.mark.parametrize("die", [vanish, crash])
def test_an_attempt_that_leaves_a_newer_checkpoint_never_counts(
    client: OpenAI, database: Database, die: Callable[[Database, Lease], None]
) -> None:
    job = create(client)
    for step in range(1, 13):
        lease = claim(database)  # without a wait
        assert lease == Lease(job.id, step)
        save(database, lease, step)
        die(database, lease)
        assert newest_message(client, job.id).endswith(f"; the next attempt resumes at step {step}")
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"


@pytest.mark.parametrize(("die", "most"), [(vanish, 10), (crash, 3)])
def test_deaths_in_a_row_without_progress_fail_the_job(
    client: OpenAI, database: Database, die: Callable[[Database, Lease], None], most: int
) -> None:
    job = create(client)
    lease = claimed(database)
    save(database, lease, 7)
    die(database, lease)
    for died in range(1, most):
        lease = claimed(database)
        save(database, lease, 7)  # the same step again is no progress
        die(database, lease)
        waits = min(60 * 2 ** (died - 1), 300)
        says = f" before it saved a newer checkpoint; attempt {died + 1} of {most} in {waits} s"
        assert newest_message(client, job.id).endswith(says)
        assert claim(database) is None, "it waits"
    die(database, claimed(database))
    failed = client.fine_tuning.jobs.retrieve(job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.code == ("worker_lost" if die is vanish else "trainer_died")
    assert f", {most} times without a newer checkpoint; the worker's log has" in failed.error.message


def test_progress_lets_the_count_begin_again(client: OpenAI, database: Database) -> None:
    job = create(client)
    for step in (1, 2, 3):
        for _ in range(2):
            crash(database, claimed(database))
        for _ in range(9):
            vanish(database, claimed(database))
        save(database, lease := claimed(database), step)
        crash(database, lease)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"


def test_how_long_attempts_last_is_known_once_one_has_died(client: OpenAI, database: Database) -> None:
    job = create(client)

    def last(seconds: float, end: Callable[[Database, Lease], None]) -> None:
        lease = claimed(database)
        started = update(FineTuningJob).values(started_at=FineTuningJob.started_at - seconds)
        write(database, lambda s: s.execute(started))
        end(database, lease)

    last(5000.0, lambda database, lease: write(database, lambda s: queue.release(s, lease)))
    assert write(database, lambda s: queue.failure_seconds(s, job.id)) == queue.NEVER
    last(7000.0, crash)
    assert write(database, lambda s: queue.failure_seconds(s, job.id)) == pytest.approx(12_000.0, abs=60)
    last(3000.0, crash)
    assert write(database, lambda s: queue.failure_seconds(s, job.id)) == pytest.approx(7500.0, abs=60)


def test_a_stale_attempt_makes_no_progress(client: OpenAI, database: Database) -> None:
    create(client)
    stale = claimed(database)
    vanish(database, stale)
    lease = claimed(database)
    with pytest.raises(LeaseLostError):
        save(database, stale, 9)
    vanish(database, lease)
    assert claim(database) is None, "it waits"


def test_what_a_dead_worker_held_is_free_before_its_lease_expires(client: OpenAI, database: Database) -> None:
    jobs = [create(client).id for _ in range(2)]
    leases = [claim(database, worker) for worker in ("worker_a", "worker_b")]
    assert [lease and lease.id for lease in leases] == jobs
    assert write(database, lambda s: queue.reclaim_from(s, ["worker_a", "worker_x"], 60.0)) == 1
    assert [client.fine_tuning.jobs.retrieve(job).status for job in jobs] == ["queued", "running"]
    assert newest_message(client, jobs[0]).startswith("Its worker died before it saved a newer checkpoint")
    with pytest.raises(LeaseLostError):
        write(database, lambda s: queue.LEASES.renew(s, Lease(jobs[0], 1), 60.0))
