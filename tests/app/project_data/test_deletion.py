"""`toque projects delete`: a project with a marker in everything that it has leaves none behind."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import MetaData, insert, select, update

from app.audit.recorder import this_user
from app.auth.models import ApiKey, Project
from app.core.database import Database
from app.core.errors import ConflictError
from app.core.settings import Settings
from app.files.models import File
from app.fine_tuning import queue, worker_registry
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import FineTuningJob, Worker
from app.models.adapters.models import Adapter
from app.project_data import deletion
from app.storage import open_storage
from app.usage.models import UsageEntry
from tests.app.core.test_migrations import rows
from tests.support.command import run
from tests.support.jobs import create, upload
from tests.support.service import BASE_MODEL, OTHER_KEY, Service
from tests.support.training_files import training_bytes

MARKER = "xyzzy-secret-recipe"


@pytest.fixture(autouse=True)
def _keys_are_forgotten_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "_KEYS_KNOWN_SECONDS", 0.0)


@pytest.fixture
def marked(settings: Settings, database: Database, service: Service, http: httpx2.Client) -> str:
    """The second project, with the marker in all that a project has; returns its id."""
    storage = open_storage(settings)
    with database.reader() as session:
        project_id = session.scalars(select(Project.id).where(Project.name == "other")).one()
    renamed = http.post(f"/v1/organization/projects/{project_id}", json={"name": f"Project {MARKER}"})
    assert renamed.status_code == 200
    with service.client(OTHER_KEY) as client, service.http(OTHER_KEY) as other:
        content = training_bytes() + marked_line()
        file_id = client.files.create(file=(f"{MARKER}.jsonl", content), purpose="fine-tune").id
        job = create(client, training_file=file_id, suffix=MARKER[:18], metadata={"dish": MARKER})
        announced = client.uploads.create(
            filename=MARKER, purpose="user_data", bytes=99, mime_type="application/jsonl"
        )
        client.uploads.parts.create(announced.id, data=MARKER.encode())
        endpoint = {"name": MARKER, "url": f"https://{MARKER}.example.com/", "event_types": ["batch.failed"]}
        assert other.post("/v1/webhook_endpoints", json=endpoint).status_code == 200
    with database.writer() as session:
        queue.add_event(session, job.id, f"A line about {MARKER}", data={"text": MARKER})
        for number, key in enumerate((f"jobs/{job.id}/1/checkpoints/step-3", "adapters/imported")):
            storage.write(f"{key}/adapter_config.json", json.dumps({"note": MARKER}).encode())
            name = f"ft:{BASE_MODEL}:other:{MARKER}:{number}"
            session.add(Adapter(name=name, project_id=project_id, base_model=BASE_MODEL, storage_key=key))
        storage.write(f"jobs/{job.id}/1/work/notes", MARKER.encode())
    run_of_job = settings.data_dir / "trackers" / "wandb" / f"offline-run-20261127_120000-{job.id}"
    run_of_job.mkdir(parents=True)
    (run_of_job / "run.wandb").write_text(MARKER)
    add_other_rows(database, project_id, file_id, job.id)
    return project_id


def marked_line() -> bytes:
    line = training_bytes().splitlines()[0]
    return line.replace(b'"content": "', f'"content": "{MARKER} '.encode(), 1) + b"\n"


def add_other_rows(database: Database, project_id: str, file_id: str, job_id: str) -> None:
    """A row of the project in every table that has none yet, with the marker where there is text."""
    metadata = MetaData()
    metadata.reflect(database.engine)
    names = {"projects": project_id, "files": file_id, "fine_tuning_jobs": job_id, "file_checks": file_id}
    with database.writer() as session:
        names["api_keys"] = session.scalars(select(ApiKey.id).where(ApiKey.project_id == project_id)).one()
        known = rows(time.time())
        for table in metadata.sorted_tables:
            if table.name in names or not known.get(table.name):
                continue
            refers = {key.parent.name: names.get(key.column.table.name) for key in table.foreign_keys}
            if not refers:
                continue
            row: dict[str, Any] = known[table.name][0] | {name: to for name, to in refers.items() if to}
            for column in table.columns:
                if column.name in refers:
                    continue
                if "JSON" in str(column.type):
                    row[column.name] = {"marker": MARKER}
                elif column.name in ("name", "text", "message", "reason", "error", "model", "filename"):
                    row[column.name] = f"{table.name} {MARKER}"
            if table.name == "fine_tuning_attempts":
                row["epoch"] = 9  # the job has not had so many
            if "id" in row:
                names[table.name] = row["id"] = f"{table.name}-{MARKER}"
            there = {name: value for name, value in row.items() if name in table.columns}
            session.execute(insert(table).values(there))


def everything(database: Database) -> str:
    """All rows of all tables, as text."""
    metadata = MetaData()
    metadata.reflect(database.engine)
    with database.reader() as session:
        found = {table.name: session.execute(select(table)).all() for table in metadata.sorted_tables}
    return "\n".join(f"{name} {row}" for name, table_rows in found.items() for row in table_rows)


def files_with(folder: Path, *texts: str) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if any(text in str(path) or (path.is_file() and text.encode() in path.read_bytes()) for text in texts)
    ]


def archive(http: httpx2.Client, project_id: str) -> None:
    assert http.post(f"/v1/organization/projects/{project_id}/archive").status_code == 200


def test_a_deleted_project_leaves_nothing_behind(
    settings: Settings, database: Database, client: OpenAI, http: httpx2.Client, marked: str
) -> None:
    shared = upload(client, training_bytes())
    before = everything(database)
    assert before.count(MARKER) > 40
    with database.reader() as session:
        [kept_key] = session.scalars(select(File.storage_key).where(File.id == shared))
    refused = run(settings, "projects", "delete", marked, "--yes")
    assert (refused.exit_code, "archive it first" in refused.output) == (1, True)
    assert everything(database).count(MARKER) > 40  # some rows are old, and may have gone by themselves

    archive(http, marked)
    deleted = run(settings, "projects", "delete", marked, "--yes")
    assert deleted.exit_code == 0, deleted.output

    left = everything(database)
    assert MARKER not in left
    assert left.count(marked) == 2  # resource and project of the one line in the audit log
    logs = http.get("/v1/organization/audit_logs").json()["data"]
    assert [log["type"] for log in logs if log.get("project", {}).get("id") == marked] == ["project.deleted"]
    assert files_with(settings.data_dir, MARKER) == []
    assert client.files.content(shared).read() == training_bytes()
    assert (settings.storage_root / kept_key).exists()
    assert run(settings, "projects", "delete", marked, "--yes").exit_code == 1
    assert upload(client)


def test_bytes_that_another_project_has_too_stay(
    settings: Settings, database: Database, client: OpenAI, other_client: OpenAI, http: httpx2.Client
) -> None:
    content = training_bytes(13)
    mine, _theirs = upload(client, content), upload(other_client, content)
    with database.reader() as session:
        project_id = session.scalars(select(Project.id).where(Project.name == "other")).one()
    archive(http, project_id)
    assert run(settings, "projects", "delete", project_id, "--yes").exit_code == 0
    assert client.files.content(mine).read() == content


def test_what_is_recorded_while_a_project_is_deleted_goes_with_it(
    settings: Settings,
    database: Database,
    http: httpx2.Client,
    marked: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A completion that was streaming when the project was archived ends, and its usage is written."""
    with database.reader() as session:
        entries = select(UsageEntry.__table__).where(UsageEntry.project_id == marked).limit(1)
        row = dict(session.execute(entries).mappings().one())
    delete_files = deletion._delete_files

    def deleted(*arguments: Any) -> None:
        delete_files(*arguments)
        with database.writer() as session:
            session.execute(insert(UsageEntry).values(row))

    monkeypatch.setattr(deletion, "_delete_files", deleted)
    monkeypatch.setattr(deletion, "_ROWS_AT_ONCE", 1)
    archive(http, marked)
    done = run(settings, "projects", "delete", marked, "--yes")
    assert done.exit_code == 0, done.output
    assert everything(database).count(marked) == 2


@pytest.mark.one_database
def test_rows_stay_while_a_folder_cannot_be_removed(
    settings: Settings, database: Database, http: httpx2.Client, marked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(http, marked)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        refused = run(settings, "projects", "delete", marked, "--yes")
    assert (refused.exit_code, "cannot be removed" in refused.output) == (1, True)
    assert MARKER in everything(database)
    assert run(settings, "projects", "delete", marked, "--yes").exit_code == 0


@pytest.mark.one_database
def test_a_full_disk_after_a_deletion_is_a_warning(
    settings: Settings, database: Database, http: httpx2.Client, marked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Database) -> bool:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Database, "scrub", full)
    archive(http, marked)
    deleted = run(settings, "projects", "delete", marked, "--yes")
    assert deleted.exit_code == 0
    assert "may still be read" in " ".join(deleted.output.split())
    assert MARKER not in everything(database)


def test_an_interrupted_deletion_is_ended_by_the_next(
    settings: Settings,
    database: Database,
    http: httpx2.Client,
    marked: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive(http, marked)
    steps = ("_folders", "_owned_rows", "_delete_files", "_line")
    for step in steps:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(deletion, step, killed)
            assert run(settings, "projects", "delete", marked, "--yes").exit_code != 0
        with database.reader() as session:
            assert session.get(Project, marked) is not None
    assert run(settings, "projects", "delete", marked, "--yes").exit_code == 0
    assert MARKER not in everything(database)
    assert files_with(settings.data_dir, MARKER) == []


def test_a_deletion_waits_for_workers(
    settings: Settings, database: Database, http: httpx2.Client, marked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.writer() as session:
        job = claim_next(session, "worker_9", [BASE_MODEL], 60.0)
        assert job is not None
        row = {"hostname": "h", "pid": 1, "device": "cpu", "version": "1", "started_at": time.time()}
        worker_registry.report(session, Worker(id="worker_9", job_id=job.id, **row))
    archive(http, marked)
    monkeypatch.setattr(deletion, "_WORKER_SECONDS", 30.0)
    with pytest.raises(ConflictError, match="worker_9 has not let go"):
        deletion.delete_project(
            database,
            open_storage(settings),
            settings.data_dir / "trackers",
            this_user(),
            marked,
            patience=0.0,
        )
    with database.writer() as session:
        assert session.get_one(FineTuningJob, job.id).status == "cancelled"
        session.execute(update(Worker).values(job_id=None))
    assert run(settings, "projects", "delete", marked, "--yes").exit_code == 0
    assert MARKER not in everything(database)
