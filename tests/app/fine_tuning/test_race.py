"""Worker processes racing for jobs, on both databases: each job is done once, and limits hold."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import func, select

from app.auth.models import Project
from app.core.database import Database
from app.files.models import File
from app.fine_tuning import queue
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import Event, FineTuningJob
from app.models.adapters.models import Adapter
from tests.support.service import BASE_MODEL

RACING_WORKER = Path(__file__).parents[2] / "support" / "racing_worker.py"
JOBS = 200


def queue_jobs(database: Database, count: int, projects: int = 2) -> list[str]:
    """Jobs of each project in turn."""
    with database.writer() as session:
        owners = session.scalars(select(Project.id).order_by(Project.id).limit(projects)).all()
        for owner in owners:
            session.add(
                File(
                    id=f"file-{owner}",
                    project_id=owner,
                    filename="f",
                    purpose="fine-tune",
                    bytes=1,
                    sha256="",
                    storage_key=owner,
                )
            )
        session.flush()
        jobs = [
            FineTuningJob(
                project_id=owners[number % projects],
                status="queued",
                model=BASE_MODEL,
                training_file_id=f"file-{owners[number % projects]}",
                seed=number,
                method="supervised",
                hyperparameters={},
            )
            for number in range(count)
        ]
        session.add_all(jobs)
        session.flush()
        return [job.id for job in jobs]


@contextmanager
def racing_worker(url: str, name: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(RACING_WORKER), url, name, BASE_MODEL]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_two_processes_end_every_job_once(database: Database, database_url: str) -> None:
    jobs = queue_jobs(database, JOBS)
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(racing_worker(database_url, name)) for name in ("worker_a", "worker_b")
        }
        for worker in workers.values():
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers.values():
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        done = {name: worker.communicate(timeout=300)[0].split() for name, worker in workers.items()}
        assert [worker.returncode for worker in workers.values()] == [0, 0]

    assert Counter(done["worker_a"] + done["worker_b"]) == Counter(jobs)
    assert all(done.values()), "both took part"
    with database.reader() as session:
        rows = session.scalars(select(FineTuningJob).order_by(FineTuningJob.seed)).all()
        models = Counter(session.scalars(select(Adapter.job_id)))
        said = Counter(map(tuple, session.execute(select(Event.job_id, Event.message))))
    assert [(row.id, row.status, row.lease_epoch) for row in rows] == [
        (job_id, ("succeeded", "failed")[number % 2], 1) for number, job_id in enumerate(jobs)
    ]
    assert {row.id: row.worker_id for row in rows} == {job: name for name in done for job in done[name]}
    assert models == Counter(jobs[::2])
    for number, job_id in enumerate(jobs):
        ending = "The job failed: m" if number % 2 else "The job has successfully completed"
        assert (said[job_id, "Fine-tuning job started"], said[job_id, ending]) == (1, 1)


@pytest.mark.parametrize("limit", [1, 2])
def test_the_limit_of_a_project_holds_while_workers_race(limit: int, database: Database) -> None:
    rounds, racers = 20, 4
    queue_jobs(database, rounds * racers, projects=1)
    barrier = threading.Barrier(racers)

    def race(name: str) -> None:
        barrier.wait()
        with database.writer() as session:
            claim_next(session, name, [BASE_MODEL], 60.0, running_limit=limit)

    running = select(func.count()).where(FineTuningJob.status == "running")
    for _ in range(rounds):
        threads = [threading.Thread(target=race, args=(f"worker_{number}",)) for number in range(racers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with database.writer() as session:
            assert 1 <= (session.scalar(running) or 0) <= limit
            for job in session.scalars(select(FineTuningJob).where(FineTuningJob.status == "running")):
                queue.fail(session, queue.LEASES.lease_of(job), code="c", message="m", param=None)
