"""Quotas of stored bytes and of GPU-hours, over HTTP and by commands, on both databases."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from sqlalchemy import select, update

from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning import gpu_hours, queue, quota_pauses
from app.fine_tuning.claim import claim_next
from app.fine_tuning.gpu_hours import month_begin, used_gpu_hours
from app.fine_tuning.models import Attempt, FineTuningJob
from app.models.adapters.models import Adapter
from tests.support.command import run
from tests.support.jobs import create, upload
from tests.support.service import BASE_MODEL


def set_quotas(http: httpx2.Client, project_id: str, **quotas: float | None) -> dict[str, Any]:
    answer = http.post(f"/v1/organization/projects/{project_id}/quotas", json=quotas)
    assert answer.status_code == 200, answer.text
    return answer.json()


def store(client: OpenAI, number: int, size: int = 1000) -> str:
    return upload(client, f"{number:04}".encode() * (size // 4), purpose="user_data")


def test_stored_bytes_are_files_announced_uploads_and_models(
    http: httpx2.Client, client: OpenAI, other_client: OpenAI, database: Database, project_id: str
) -> None:
    assert set_quotas(http, project_id, max_stored_bytes=5000)["stored_bytes"] == 0
    file_id = store(client, 1)
    announced = client.uploads.create(
        filename="u", purpose="user_data", bytes=2000, mime_type="application/jsonl"
    )
    with database.writer() as session:
        model = {"project_id": project_id, "base_model": BASE_MODEL, "storage_key": "jobs/a", "bytes": 1500}
        session.add_all(Adapter(name=name, **model) for name in ("ft:a", "ft:a:ckpt-step-1"))
    assert set_quotas(http, project_id)["stored_bytes"] == 4500

    with pytest.raises(openai.RateLimitError) as refused:
        store(client, 2)
    body = refused.value.body
    assert isinstance(body, dict)
    assert (body["type"], body["code"], body["param"]) == ("insufficient_quota", "insufficient_quota", "file")
    assert "stores 4,500 bytes, and may store 5,000: 1,000 more are too many" in body["message"]
    assert refused.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.RateLimitError):
        client.uploads.create(filename="u", purpose="user_data", bytes=501, mime_type="application/jsonl")
    store(other_client, 2)  # which has no quota

    part = client.uploads.parts.create(announced.id, data=b"x" * 2000)
    assert client.uploads.complete(announced.id, part_ids=[part.id]).status == "completed"
    client.files.delete(file_id)
    store(client, 2)
    assert set_quotas(http, project_id, max_stored_bytes=None)["max_stored_bytes"] is None
    store(client, 3)


def test_deleted_files_do_not_fill_the_disk(http: httpx2.Client, client: OpenAI, project_id: str) -> None:
    """Their bytes are removed a day later; equal ones are on the disk once."""
    set_quotas(http, project_id, max_stored_bytes=1000)
    for number in (1, 1, 1):
        client.files.delete(store(client, number))
    file_id = store(client, 2)
    client.files.delete(file_id)
    with pytest.raises(openai.RateLimitError, match="2,000 bytes within a day, which are still on the disk"):
        store(client, 3)


def test_deleted_models_do_not_fill_the_disk(
    http: httpx2.Client, client: OpenAI, database: Database, project_id: str
) -> None:
    """A folder is deleted with the last model in it."""
    set_quotas(http, project_id, max_stored_bytes=1000)
    day = 86_400
    deleted_before = {"a": 60, "a:ckpt-step-1": 120, "b": day + 60, "c": 60}
    with database.writer() as session:
        model = {"project_id": project_id, "base_model": BASE_MODEL}
        for name, seconds in deleted_before.items():
            key, deleted_at = f"jobs/{name[0]}", time.time() - seconds
            size = 1500 if name != "c" else 300
            session.add(Adapter(name=name, storage_key=key, bytes=size, deleted_at=deleted_at, **model))
        session.add(Adapter(name="c:ckpt-step-1", storage_key="jobs/c", bytes=300, **model))
    store(client, 1, size=200)
    with pytest.raises(openai.RateLimitError, match="deleted 1,500 bytes within a day"):
        store(client, 2, size=200)


def test_uploads_at_once_do_not_overrun_a_quota(http: httpx2.Client, client: OpenAI, project_id: str) -> None:
    set_quotas(http, project_id, max_stored_bytes=5000)

    def is_stored(number: int) -> bool:
        try:
            store(client, number)
        except openai.RateLimitError:
            return False
        return True

    with ThreadPoolExecutor(12) as threads:
        assert sum(threads.map(is_stored, range(24))) == 5
    assert set_quotas(http, project_id)["stored_bytes"] == 5000


def test_gpu_hours_end_what_waits_and_not_what_runs(
    http: httpx2.Client,
    client: OpenAI,
    database: Database,
    project_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Today's month may be younger than half an hour.
    monkeypatch.setattr(gpu_hours, "month_begin", lambda at: month_begin(at - 3600))
    running, waiting = create(client), create(client)
    with database.writer() as session:
        job = claim_next(session, "worker_1", [BASE_MODEL], 60.0)
        assert job is not None
        assert job.id == running.id
        job.gpus, started = 2, (job.started_at or 0) - 1800
        session.execute(update(FineTuningJob).where(FineTuningJob.id == job.id).values(started_at=started))
    used = set_quotas(http, project_id, max_gpu_hours=0.5)["gpu_hours"]
    assert 1.0 <= used < 1.1

    with pytest.raises(openai.RateLimitError, match=r"may use 0\.50") as refused:
        create(client)
    assert refused.value.code == "insufficient_quota"
    with database.writer() as session:
        quota_pauses.pause_and_resume(session)
    assert client.fine_tuning.jobs.retrieve(waiting.id).status == "paused"
    assert client.fine_tuning.jobs.retrieve(running.id).status == "running"
    with pytest.raises(openai.RateLimitError):
        client.fine_tuning.jobs.resume(waiting.id)

    with database.writer() as session:
        lease = queue.LEASES.lease_of(job)
        queue.fail(session, lease, code="training_diverged", message="It burnt.", param=None)
    with database.reader() as session:
        attempt = session.scalars(select(Attempt)).one()
    assert (attempt.job_id, attempt.epoch, attempt.gpus) == (running.id, 1, 2)
    assert 1800 <= attempt.ended_at - attempt.started_at < 1900
    assert 1.0 <= set_quotas(http, project_id, max_gpu_hours=2)["gpu_hours"] < 1.1
    with database.writer() as session:
        quota_pauses.pause_and_resume(session)
    assert client.fine_tuning.jobs.retrieve(waiting.id).status == "queued"
    set_quotas(http, project_id, max_gpu_hours=0)
    assert client.fine_tuning.jobs.resume(waiting.id).status == "queued"  # as it was
    messages = [event.message for event in client.fine_tuning.jobs.list_events(waiting.id)]
    assert messages[:2] == [
        "There are GPU-hours again: the job waits for a worker",
        "Paused: the project has used up its 0.50 GPU-hours of this month",
    ]


def test_each_month_counts_its_part_of_an_attempt(
    client: OpenAI, database: Database, project_id: str
) -> None:
    job = create(client)
    begin = month_begin(1_790_000_000)
    with database.writer() as session:
        session.add(
            Attempt(
                job_id=job.id,
                epoch=1,
                project_id=project_id,
                gpus=4,
                started_at=begin - 7200,
                ended_at=begin + 1800,
            )
        )
    with database.reader() as session:
        assert used_gpu_hours(session, project_id, at=begin) == 2.0
        assert used_gpu_hours(session, project_id, at=begin + 40 * 86_400) == 0.0


def test_an_attempt_that_ended_before_the_month_is_not_deducted_from_it(
    client: OpenAI, database: Database, project_id: str
) -> None:
    """Its worker died, and no other is there that would end it."""
    create(client)
    with database.writer() as session:
        job = claim_next(session, "worker_1", [BASE_MODEL], 60.0)
        assert job is not None
        begin = month_begin(job.started_at or 0)
        job.started_at, job.lease_until = begin - 7200, begin - 3600
    with database.reader() as session:
        assert used_gpu_hours(session, project_id) == 0.0


@pytest.mark.one_database
@pytest.mark.parametrize("value", ["5", True])
def test_a_quota_is_a_number(http: httpx2.Client, project_id: str, value: object) -> None:
    refused = http.post(f"/v1/organization/projects/{project_id}/quotas", json={"max_gpu_hours": value})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_gpu_hours")


def test_a_job_whose_worker_died_is_counted_until_its_lease_ended(
    client: OpenAI, database: Database, project_id: str
) -> None:
    create(client)
    with database.writer() as session:
        job = claim_next(session, "worker_1", [BASE_MODEL], 60.0)
        assert job is not None
        assert job.started_at is not None
        started = job.started_at - 90_000
        job.started_at, job.lease_until = started, started + 3600
    with database.writer() as session:
        assert queue.reclaim_expired(session, 0) == 1
    with database.reader() as session:
        attempt = session.scalars(select(Attempt)).one()
    assert attempt.ended_at - attempt.started_at == pytest.approx(3600)


@pytest.mark.one_database
def test_quotas_are_set_and_shown_by_commands(
    settings: Settings, database: Database, project_id: str
) -> None:
    set_ = run(settings, "projects", "quotas", project_id, "--stored-bytes", "50GiB", "--gpu-hours", "100")
    assert set_.exit_code == 0, set_.output
    shown = json.loads(run(settings, "projects", "show", project_id, "--json").stdout)
    assert shown["quotas"] == {
        "object": "organization.project.quotas",
        "project_id": project_id,
        "max_stored_bytes": 50 * 2**30,
        "stored_bytes": 0,
        "max_gpu_hours": 100.0,
        "gpu_hours": 0.0,
    }
    assert "0 of 53,687,091,200" in run(settings, "projects", "show", project_id).stdout
    assert run(settings, "projects", "quotas", project_id, "--gpu-hours", "none").exit_code == 0
    assert "0.00 of any number" in run(settings, "projects", "show", project_id).stdout
    assert run(settings, "projects", "quotas", project_id, "--gpu-hours", "-1").exit_code == 2
