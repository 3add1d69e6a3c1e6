"""How many jobs wait for workers, by what they ask for, on both databases."""

from __future__ import annotations

from typing import Any

from openai import OpenAI
from sqlalchemy import update

from app.core.database import Database, database_now
from app.fine_tuning import backlog
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import SPEC_VERSION, FineTuningJob
from tests.support.jobs import create, upload
from tests.support.service import BASE_MODEL


def create_jobs(client: OpenAI, *gpus: int) -> list[str]:
    file = upload(client)
    methods: list[Any] = [
        {"type": "supervised", "supervised": {"hyperparameters": {"gpus": number}}} for number in gpus
    ]
    return [create(client, training_file=file, method=method).id for method in methods]


def claimable(database: Database, **limits: float) -> dict[int, int]:
    with database.reader() as session:
        return backlog.count_claimable(session, [BASE_MODEL], **limits)  # pyright: ignore[reportArgumentType]


def set_columns(database: Database, job_id: str, **values: Any) -> None:
    with database.writer() as session:
        session.execute(update(FineTuningJob).where(FineTuningJob.id == job_id).values(values))


def test_jobs_count_by_their_gpus_once_they_can_be_claimed(client: OpenAI, database: Database) -> None:
    first, second, _, _ = create_jobs(client, 1, 1, 2, 4)
    assert claimable(database) == {1: 2, 2: 1, 4: 1}
    set_columns(database, first, not_before=database_now() + 60)
    set_columns(database, second, spec_version=SPEC_VERSION + 1)
    assert claimable(database) == {2: 1, 4: 1}
    assert claimable(database, within_seconds=90) == {1: 1, 2: 1, 4: 1}
    with database.reader() as session:
        assert backlog.count_claimable(session, ["another-base"]) == {}


def test_a_project_counts_up_to_its_limit(client: OpenAI, other_client: OpenAI, database: Database) -> None:
    create_jobs(client, 1, 1, 2)
    create_jobs(other_client, 1)
    assert claimable(database, running_limit=2) == {1: 3}
    with database.writer() as session:
        assert claim_next(session, "worker_a", [BASE_MODEL], 60)
        assert claim_next(session, "worker_a", [BASE_MODEL], 60)
    with database.reader() as session:
        assert backlog.count_running(session) == {1: 2}
    assert claimable(database, running_limit=2) == {1: 1}
    assert claimable(database, running_limit=1) == {}


def test_a_worker_may_leave_jobs_for_fewer_gpus_to_others(client: OpenAI, database: Database) -> None:
    _, two, _ = create_jobs(client, 1, 2, 3)
    with database.writer() as session:
        job = claim_next(session, "worker_a", [BASE_MODEL], 60, gpus=2, least_gpus=2)
        assert job is not None
        assert job.id == two
        assert claim_next(session, "worker_a", [BASE_MODEL], 60, gpus=2, least_gpus=2) is None
