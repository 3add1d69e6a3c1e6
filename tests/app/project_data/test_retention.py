"""What projects keep no longer is deleted, unless something uses it; the audit log has each deletion."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from app.batches.models import Batch
from app.comparisons.models import Comparison
from app.core.database import Base, Database
from app.core.settings import Settings
from app.files.models import File
from app.fine_tuning.models import FineTuningJob, TrackedRun
from app.models.adapters.models import Adapter
from app.models.aliases.models import Alias
from app.project_data import retention
from app.project_data.retention import delete_old_data
from tests.support import aliases
from tests.support.command import run
from tests.support.jobs import create, upload
from tests.support.service import BASE_MODEL

DAY = 86_400


def age(database: Database, table: type[Base], column: str, days: float, *which: Any) -> None:
    """Let rows be so old."""
    with database.writer() as session:
        session.execute(update(table).where(*which).values({column: time.time() - days * DAY}))


def keep_for(http: httpx2.Client, project_id: str, **days: int | None) -> dict[str, Any]:
    answer = http.post(f"/v1/organization/projects/{project_id}/retention", json=days)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_old_files_are_deleted_unless_something_uses_them(
    http: httpx2.Client, client: OpenAI, other_client: OpenAI, database: Database, project_id: str
) -> None:
    old, young = upload(client), upload(client)
    used_by_job = create(client).training_file
    used_by_batch = upload(client, purpose="batch")
    others = upload(other_client)
    with database.writer() as session:
        batch = {"endpoint": "/v1/completions", "expires_at": time.time() + 9, "status": "in_progress"}
        session.add(Batch(project_id=project_id, input_file_id=used_by_batch, **batch))
    age(database, File, "created_at", 31, File.id != young)

    delete_old_data(database)
    assert len(list(client.files.list())) == 4  # nothing is set yet
    assert keep_for(http, project_id, files=30)["files"] == 30
    delete_old_data(database)

    assert {file.id for file in client.files.list()} == {young, used_by_job, used_by_batch}
    assert [file.id for file in other_client.files.list()] == [others]
    logs = http.get("/v1/organization/audit_logs", params={"event_types[]": "file.deleted"}).json()["data"]
    assert [log["file.deleted"]["id"] for log in logs] == [old]
    assert "retention" in json.dumps(logs[0])

    with database.writer() as session:
        session.execute(update(FineTuningJob).values(status="cancelled"))
    delete_old_data(database)
    assert {file.id for file in client.files.list()} == {young, used_by_batch}


def test_outputs_checkpoints_and_logs_have_days_of_their_own(
    http: httpx2.Client, client: OpenAI, database: Database, project_id: str
) -> None:
    ended, running = create(client), create(client)
    output = upload(client, purpose="batch")
    with database.writer() as session:
        session.execute(update(File).where(File.id == output).values(purpose="batch_output"))
        for job in (ended, running):
            for name in ("", ":ckpt-step-1", ":ckpt-step-2"):
                adapter = {"base_model": BASE_MODEL, "storage_key": f"jobs/{job.id}{name}", "job_id": job.id}
                session.add(Adapter(name=f"ft:{job.id}{name}", project_id=project_id, **adapter))
    aliases.put(http, model=f"ft:{ended.id}:ckpt-step-2")
    client.fine_tuning.jobs.cancel(ended.id)
    for table, column in ((File, "created_at"), (Adapter, "created_at"), (FineTuningJob, "finished_at")):
        age(database, table, column, 8, getattr(table, column).is_not(None))

    keep_for(http, project_id, outputs=7, checkpoints=7, logs=9)
    delete_old_data(database)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(output)
    assert client.files.retrieve(ended.training_file)
    with database.reader() as session:
        deleted = session.scalars(select(Adapter.name).where(Adapter.deleted_at.is_not(None))).all()
    assert deleted == [f"ft:{ended.id}:ckpt-step-1"]
    assert client.fine_tuning.jobs.list_events(ended.id).data

    assert keep_for(http, project_id, logs=7)["outputs"] == 7
    delete_old_data(database)
    assert client.fine_tuning.jobs.list_events(ended.id).data == []
    assert client.fine_tuning.jobs.list_events(running.id).data
    logged = http.get("/v1/organization/audit_logs", params={"limit": 100}).json()["data"]
    types = [log["type"] for log in logged if "retention" in json.dumps(log)]
    for type_ in ("file.deleted", "adapter.deleted", "fine_tuning.job.updated"):
        assert types.count(type_) == 1


def test_logs_of_many_jobs_are_deleted_in_turns(
    http: httpx2.Client,
    client: OpenAI,
    database: Database,
    project_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.project_data.retention._EVENTS_AT_ONCE", 1)
    ended = [create(client).id for _ in range(3)]
    for job_id in ended:
        client.fine_tuning.jobs.cancel(job_id)
    age(database, FineTuningJob, "finished_at", 8, FineTuningJob.finished_at.is_not(None))
    keep_for(http, project_id, logs=7)
    delete_old_data(database)
    assert [client.fine_tuning.jobs.list_events(job_id).data for job_id in ended] == [[], [], []]


def test_checkpoints_stay_that_something_unfinished_uses(
    http: httpx2.Client,
    client: OpenAI,
    database: Database,
    project_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Candidates, what a batch that is not validated may name, and what an alias just came to point to."""
    checkpoints = [f"ft:x:ckpt-step-{step}" for step in range(3)]
    file_id = upload(client, purpose="batch")
    with database.writer() as session:
        adapter = {"project_id": project_id, "base_model": BASE_MODEL, "storage_key": "jobs/x"}
        session.add_all(Adapter(name=name, **adapter) for name in checkpoints)
        batch = {"endpoint": "/v1/completions", "expires_at": time.time() + 9, "status": "validating"}
        session.add(Batch(project_id=project_id, input_file_id=file_id, **batch))
        candidate = {"name": "a", "type": "model", "model": checkpoints[0]}
        numbers = {
            "questions": 1,
            "max_tokens": 1,
            "temperature": 0,
            "concurrency": 1,
            "seed": 1,
            "margin": 0,
        }
        plan = {"grader": "exact", "general_grader": "exact", "max_regression": 0, "good_enough": None}
        session.add(
            Comparison(
                project_id=project_id,
                status="in_progress",
                model=BASE_MODEL,
                excluded=[],
                total=1,
                file_id=file_id,
                plan=plan | numbers | {"candidates": [candidate]},
            )
        )
    age(database, Adapter, "created_at", 8)
    keep_for(http, project_id, checkpoints=7)

    def left() -> list[str]:
        with database.reader() as session:
            return sorted(session.scalars(select(Adapter.name).where(Adapter.deleted_at.is_(None))))

    delete_old_data(database)
    assert left() == checkpoints
    with database.writer() as session:
        session.execute(update(Batch).values(status="completed"))
    is_unused, looks = retention._is_unused, iter((False, True))

    def pointed_meanwhile(session: Session, project_id: str) -> ColumnElement[bool]:
        if next(looks, False):
            session.add(
                Alias(project_id=project_id, name="live", version=1, split=[{"model": checkpoints[1]}])
            )
        return is_unused(session, project_id)

    monkeypatch.setattr(retention, "_is_unused", pointed_meanwhile)
    delete_old_data(database)
    assert left() == checkpoints[:2]


def test_events_stay_until_they_were_sent_to_the_tracker(
    http: httpx2.Client, client: OpenAI, database: Database, project_id: str
) -> None:
    job_id = create(client).id
    client.fine_tuning.jobs.cancel(job_id)
    with database.writer() as session:
        run_ = {"tracker": "mlflow", "project": "p", "name": "n", "tags": []}
        session.add(TrackedRun(job_id=job_id, **run_))
    age(database, FineTuningJob, "finished_at", 8)
    keep_for(http, project_id, logs=7)
    delete_old_data(database)
    assert client.fine_tuning.jobs.list_events(job_id).data
    age(database, TrackedRun, "ended_at", 0)
    delete_old_data(database)
    assert client.fine_tuning.jobs.list_events(job_id).data == []


@pytest.mark.one_database
def test_retention_is_set_by_commands(settings: Settings, project_id: str) -> None:
    assert run(settings, "projects", "retention", project_id, "--files", "90", "--logs", "30").exit_code == 0
    changed = run(settings, "projects", "retention", project_id, "--logs", "none")
    assert changed.stdout.split() == ["files", "90", "project_id", project_id]
    assert "files 90 days" in run(settings, "projects", "show", project_id).stdout
    assert run(settings, "projects", "retention", project_id, "--files", "0").exit_code == 2
