"""The queue as a state machine: whatever workers and users do, in whatever order, its promises hold.

Promises: one final state for ever; never two owners of an epoch; one adapter for a succeeded job and none for
another; at most three failed attempts, and ten lost workers, in a row; no write by a stale epoch.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, select, update

from app.auth.models import Project
from app.core.database import Database
from app.core.errors import ConflictError
from app.core.lease import Lease, LeaseLostError
from app.files.models import File
from app.fine_tuning import publication, queue, service
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import ALLOWED_MOVES, FINAL_STATUSES, FineTuningJob
from app.models.adapters.models import Adapter

BASE = "base"


class QueueMachine(RuleBasedStateMachine):
    """Two projects, three workers, any number of jobs; the database's clock is moved by moving deadlines."""

    database: Database
    claims = Bundle("claims")

    @initialize()
    def start(self) -> None:
        with self.database.writer() as session:
            unfinished = FineTuningJob.status.not_in(FINAL_STATUSES)  # of the example before
            session.execute(update(FineTuningJob).where(unfinished).values(status="cancelled"))
            # In order of age: a replayed example must break ties in the same way.
            age = session.scalar(select(func.count()).select_from(Project)) or 0
            self.projects = [f"proj_{age + number:08}" for number in range(2)]
            session.add_all(Project(id=project, name=project, title=project) for project in self.projects)
            session.flush()
            for project in self.projects:
                session.add(
                    File(
                        id=f"file-{project}",
                        project_id=project,
                        filename="f",
                        purpose="fine-tune",
                        bytes=1,
                        sha256="",
                        storage_key=project,
                    )
                )
        self.jobs: dict[str, str] = {}
        self.final: dict[str, str] = {}
        self.owners: dict[tuple[str, int], str] = {}
        self.published: set[str] = set()

    @rule(project=st.integers(0, 1), rank=st.integers(-1, 1), gpus=st.integers(1, 2))
    def create(self, project: int, rank: int, gpus: int) -> None:
        with self.database.writer() as session:
            job = FineTuningJob(
                project_id=self.projects[project],
                status="queued",
                model=BASE,
                training_file_id=f"file-{self.projects[project]}",
                seed=0,
                method="supervised",
                hyperparameters={},
                rank=rank,
                gpus=gpus,
            )
            session.add(job)
            session.flush()
            self.jobs[job.id] = job.project_id

    @rule(
        target=claims,
        worker=st.sampled_from(["a", "b", "c"]),
        limit=st.integers(0, 2),
        gpus=st.integers(1, 2),
    )
    def claim(self, worker: str, limit: int, gpus: int) -> Any:
        with self.database.writer() as session:
            running = list(
                session.scalars(select(FineTuningJob.project_id).where(FineTuningJob.status == "running"))
            )
            job = claim_next(session, worker, [BASE], 3600, gpus=gpus, running_limit=limit)
        if job is None:
            return multiple()
        assert job.id in self.jobs
        assert (job.id, job.lease_epoch) not in self.owners, "an epoch has one owner"
        assert job.gpus <= gpus
        assert not limit or running.count(job.project_id) < limit
        self.owners[job.id, job.lease_epoch] = worker
        return Lease(job.id, job.lease_epoch)

    def owns(self, claim: Lease) -> bool:
        with self.database.reader() as session:
            job = session.get_one(FineTuningJob, claim.id)
            return job.status == "running" and job.lease_epoch == claim.epoch

    def write(self, claim: Lease, work: Any) -> None:
        """The write succeeds exactly if the claim still holds."""
        owned = self.owns(claim)
        try:
            with self.database.writer() as session:
                work(session)
        except LeaseLostError:
            assert not owned
        else:
            assert owned, "a stale epoch wrote"

    @rule(claim=claims)
    def renew(self, claim: Lease) -> None:
        self.write(claim, lambda s: queue.LEASES.renew(s, claim, 3600))

    @rule(claim=claims, step=st.integers(1, 9))
    def step(self, claim: Lease, step: int) -> None:
        self.write(
            claim,
            lambda s: queue.record_step(s, claim, step, "step", data={"step": step}, estimated_finish=0.0),
        )

    @rule(claim=claims, step=st.integers(1, 9))
    def save(self, claim: Lease, step: int) -> None:
        self.write(claim, lambda s: queue.record_saved(s, claim, step))

    @rule(claim=claims)
    def succeed(self, claim: Lease) -> None:
        def publish(session: Any) -> None:
            job = session.get_one(FineTuningJob, claim.id)
            file = f"file-{job.project_id}"
            publication.publish_model(
                session, job, claim, storage_key="k", trained_tokens=1, result_file_id=file
            )

        if self.owns(claim):
            self.published.add(claim.id)
        self.write(claim, publish)

    @rule(claim=claims)
    def fail(self, claim: Lease) -> None:
        self.write(claim, lambda s: queue.fail(s, claim, code="c", message="m", param=None))

    @rule(claim=claims)
    def die(self, claim: Lease) -> None:
        self.write(claim, lambda s: queue.retry(s, claim, "It died", code="trainer_died", retry_seconds=60))

    @rule(claim=claims)
    def release(self, claim: Lease) -> None:
        self.write(claim, lambda s: queue.release(s, claim))

    @rule(claim=claims)
    def run_out_of_room(self, claim: Lease) -> None:
        self.write(claim, lambda s: queue.pause_for_room(s, claim, "full"))

    @rule()
    def find_room(self) -> None:
        with self.database.writer() as session:
            queue.resume_with_room(session)

    @rule(share=st.integers(1, 3))
    def leases_pass(self, share: int) -> None:
        """The clock jumps past every lease of some workers."""
        workers = ["a", "b", "c"][:share]
        with self.database.writer() as session:
            session.execute(
                update(FineTuningJob)
                .where(FineTuningJob.status == "running", FineTuningJob.worker_id.in_(workers))
                .values(lease_until=0.0)
            )
            queue.reclaim_expired(session, 60)

    @rule(worker=st.sampled_from(["a", "b", "c"]))
    def worker_dies(self, worker: str) -> None:
        with self.database.writer() as session:
            queue.reclaim_from(session, [worker], 60)
            held = select(FineTuningJob.id).where(
                FineTuningJob.status == "running", FineTuningJob.worker_id == worker
            )
            assert session.scalars(held).all() == []

    @rule()
    def back_off_passes(self) -> None:
        with self.database.writer() as session:
            session.execute(update(FineTuningJob).values(not_before=0.0))

    @rule(number=st.integers(0, 30), move=st.sampled_from(["cancel_job", "pause_job", "resume_job"]))
    def user_moves(self, number: int, move: str) -> None:
        if not self.jobs:
            return
        job_id = list(self.jobs)[number % len(self.jobs)]
        with self.database.reader() as session:
            before = session.get_one(FineTuningJob, job_id).status
        wanted = {"cancel_job": "cancelled", "pause_job": "paused", "resume_job": "queued"}[move]
        try:
            with self.database.writer() as session:
                after = getattr(service, move)(session, self.jobs[job_id], job_id).status
        except ConflictError:
            assert wanted not in ALLOWED_MOVES[before] and before != wanted
        else:
            assert after == wanted or (move, after) == ("resume_job", "running")

    @invariant()
    def promises(self) -> None:
        if not getattr(self, "jobs", None):
            return
        with self.database.reader() as session:
            rows = session.scalars(select(FineTuningJob).where(FineTuningJob.id.in_(self.jobs))).all()
            adapters = list(session.scalars(select(Adapter.job_id).where(Adapter.job_id.in_(self.jobs))))
        for job in rows:
            assert self.final.get(job.id, job.status) == job.status, "a final status changed"
            if job.status in FINAL_STATUSES:
                self.final[job.id] = job.status
            assert adapters.count(job.id) == (1 if job.status == "succeeded" else 0)
            assert job.attempts_failed < queue.MAX_ATTEMPTS
            assert job.workers_lost < queue.MAX_WORKERS_LOST
            assert (job.lease_until is not None) == (job.status == "running")
            assert (job.id in self.published) == (job.status == "succeeded")


def test_the_queue_keeps_its_promises(database_url: str) -> None:
    database = Database(database_url)

    class Machine(QueueMachine):
        pass

    Machine.database = database
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=30, stateful_step_count=40),
    )
    database.dispose()
