"""What projects keep no longer is deleted, unless something uses it; the audit log has each deletion."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from sqlalchemy import select, update

from app.batches.models import Batch
from app.core.database import Base, Database
from app.core.settings import Settings
from app.files.models import File
from app.fine_tuning.models import FineTuningJob
from app.models.adapters.models import Adapter
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


@pytest.mark.one_database
def test_retention_is_set_by_commands(settings: Settings, project_id: str) -> None:
    assert run(settings, "projects", "retention", project_id, "--files", "90", "--logs", "30").exit_code == 0
    changed = run(settings, "projects", "retention", project_id, "--logs", "none")
    assert changed.stdout.split() == ["files", "90", "project_id", project_id]
    assert "files 90 days" in run(settings, "projects", "show", project_id).stdout
    assert run(settings, "projects", "retention", project_id, "--files", "0").exit_code == 2
