"""The queue: who owns a job, and whose writes count, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.core.database import Database
from app.core.lease import Lease, LeaseLostError
from app.core.settings import Settings
from app.files import service as files_service
from app.fine_tuning import publication, queue
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import ALLOWED_MOVES, FINAL_STATUSES, FineTuningJob
from app.models.adapters.models import Adapter
from app.storage import open_storage
from tests.support.jobs import create
from tests.support.service import BASE_MODEL

LEASE = 60.0


def claim(database: Database, worker: str = "worker_a", lease: float = LEASE) -> FineTuningJob | None:
    with database.writer() as session:
        return claim_next(session, worker, [BASE_MODEL], lease)


def write(database: Database, work: Callable[[Session], Any]) -> Any:
    with database.writer() as session:
        return work(session)


def expire(database: Database, job_id: str) -> None:
    """The lease passes, some worker notices, and the back-off is over."""

    def pass_time(session: Session, **values: float) -> None:
        session.execute(update(FineTuningJob).where(FineTuningJob.id == job_id).values(**values))

    write(database, lambda s: pass_time(s, lease_until=0.0))
    assert write(database, lambda s: queue.reclaim_expired(s, 60)) == 1
    assert claim(database, "too early") is None
    write(database, lambda s: pass_time(s, not_before=0.0))


def test_the_oldest_job_is_claimed_first_and_only_once(client: OpenAI, database: Database) -> None:
    first, second = create(client).id, create(client).id
    claims = [claim(database) for _ in range(3)]
    assert [job.id if job else None for job in claims] == [first, second, None]
    assert claims[0] is not None
    assert (claims[0].lease_epoch, claims[0].worker_id) == (1, "worker_a")
    assert client.fine_tuning.jobs.retrieve(first).status == "running"


def test_only_bases_that_the_worker_has_are_claimed(client: OpenAI, database: Database) -> None:
    create(client)
    assert write(database, lambda s: claim_next(s, "worker_a", ["another-base"], LEASE)) is None


def test_an_expired_lease_passes_to_another_and_the_first_writes_nothing_more(
    client: OpenAI, database: Database
) -> None:
    job = create(client)
    stale = claim(database)
    assert stale is not None
    expire(database, job.id)
    fresh = claim(database, "worker_b")
    assert fresh is not None
    assert (fresh.id, fresh.lease_epoch, fresh.worker_id) == (job.id, 2, "worker_b")
    before = len(list(client.fine_tuning.jobs.list_events(job.id)))
    attempts: list[Callable[[Session], Any]] = [
        lambda s: queue.LEASES.renew(s, Lease(job.id, 1), LEASE),
        lambda s: queue.record_event(s, Lease(job.id, 1), "from beyond"),
        lambda s: queue.record_checkpoint(s, Lease(job.id, 1), step=1, name="n", metrics={"step": 1}),
        lambda s: queue.fail(s, Lease(job.id, 1), code="c", message="m", param=None),
        lambda s: queue.release(s, Lease(job.id, 1)),
        lambda s: publication.publish_model(
            s, stale, Lease(job.id, 1), storage_key="k", trained_tokens=1, result_file_id="file-none"
        ),
    ]
    for attempt in attempts:
        with pytest.raises(LeaseLostError):
            write(database, attempt)
    assert len(list(client.fine_tuning.jobs.list_events(job.id))) == before
    assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
    write(database, lambda s: queue.LEASES.renew(s, Lease(job.id, 2), LEASE))


def test_success_publishes_one_model_in_one_transaction(
    client: OpenAI, other_client: OpenAI, database: Database, settings: Settings
) -> None:
    job = create(client, suffix="house style")
    row = claim(database)
    assert row is not None
    storage = open_storage(settings)
    stored = storage.write("files/result", b"step\n1\n")

    def publish(session: Session, *, crash: bool) -> str:
        result = files_service.create_result_file(session, row.project_id, "metrics.csv", stored)
        name = publication.publish_model(
            session, row, Lease(job.id, 1), storage_key="jobs/x", trained_tokens=42, result_file_id=result.id
        )
        if crash:
            raise RuntimeError
        return name

    checkpoint = write(
        database,
        lambda s: publication.publish_checkpoint(
            s, row, Lease(job.id, 1), step=3, storage_key="jobs/x", metrics={"step": 3}
        ),
    )
    with pytest.raises(RuntimeError):
        write(database, lambda s: publish(s, crash=True))
    assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
    assert [model.id for model in client.models.list()] == [BASE_MODEL, checkpoint]

    name = write(database, lambda s: publish(s, crash=False))
    assert name == f"ft:{BASE_MODEL}:default:house-style:{job.id.removeprefix('ftjob-')}"
    assert checkpoint == f"{name}:ckpt-step-3"
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", name, 42)
    assert client.files.content(done.result_files[0]).read() == b"step\n1\n"
    assert {model.id for model in client.models.list()} == {BASE_MODEL, name, checkpoint}
    assert client.models.retrieve(name).owned_by == job.organization_id
    assert [model.id for model in other_client.models.list()] == [BASE_MODEL]

    assert client.models.delete(name).deleted is True
    assert {model.id for model in client.models.list()} == {BASE_MODEL, checkpoint}
    with database.reader() as session:
        rows = session.scalars(select(Adapter).where(Adapter.name == name)).all()
    assert len(rows) == 1, "the name stays taken"


def test_a_step_whose_answer_was_lost_is_on_the_record_once(client: OpenAI, database: Database) -> None:
    """The commit came through, the connection broke: the worker says it again."""
    job = create(client)
    claim(database)
    for step in (1, 1, 2, 1):
        write(
            database,
            lambda s, step=step: queue.record_step(
                s, Lease(job.id, 1), step, f"Step {step}", data={"step": step}, estimated_finish=0.0
            ),
        )
    steps = [e.data["step"] for e in client.fine_tuning.jobs.list_events(job.id) if e.type == "metrics"]
    assert steps == [2, 1]
    with database.reader() as session:
        assert session.get_one(FineTuningJob, job.id).recorded_step == 2


def test_cancelling_a_running_job_takes_it_from_its_worker(client: OpenAI, database: Database) -> None:
    job = create(client)
    claim(database)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(LeaseLostError):
        write(database, lambda s: queue.LEASES.renew(s, Lease(job.id, 1), LEASE))
    assert claim(database) is None


def test_final_statuses_are_final(client: OpenAI, database: Database) -> None:
    job = create(client)
    claim(database)
    lease = Lease(job.id, 1)
    write(database, lambda s: queue.fail(s, lease, code="bad", message="It burnt.", param="training_file"))
    failed = client.fine_tuning.jobs.retrieve(job.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.error.message) == ("failed", "bad", "It burnt.")
    from openai import ConflictError

    with pytest.raises(ConflictError) as caught:
        client.fine_tuning.jobs.cancel(job.id)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert {"succeeded", "failed", "cancelled"} == FINAL_STATUSES
    assert all(move in ALLOWED_MOVES for moves in ALLOWED_MOVES.values() for move in moves)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite has one writer at a time
def test_a_job_that_is_being_claimed_hides_no_other_projects_job(
    client: OpenAI, other_client: OpenAI, database: Database
) -> None:
    jobs = {create(client).id, create(other_client).id}
    with database.writer() as session:
        first = claim_next(session, "worker_a", [BASE_MODEL], LEASE)
        second = claim(database, "worker_b")
    assert first is not None
    assert second is not None
    assert {first.id, second.id} == jobs


def test_workers_racing_for_jobs_get_each_once(client: OpenAI, database: Database) -> None:
    file = create(client).training_file
    jobs = {create(client, training_file=file).id for _ in range(19)} | {
        job.id for job in client.fine_tuning.jobs.list()
    }
    claimed: list[str] = []

    def work(name: str) -> None:
        while (job := claim(database, name)) is not None:
            claimed.append(job.id)

    threads = [threading.Thread(target=work, args=(f"worker_{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 20
    assert set(claimed) == jobs
