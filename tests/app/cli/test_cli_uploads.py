"""`toque files upload` with files that go up in parts, over a connection that breaks."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from app.cli import uploads
from app.files.models import File
from app.uploads.models import Upload, UploadPart
from tests.support.breaking_proxy import BreakingProxy, breaking_proxy
from tests.support.command import Service
from tests.support.waiting import wait_until

PART = uploads.PART_BYTES
SIZE = 7 * PART + 1000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.bin"
    path.write_bytes(b"".join(os.urandom(2**20) * (PART // 2**20) for _ in range(7)) + b"end\n" * 250)
    assert path.stat().st_size == SIZE > uploads.LARGE_BYTES
    return path


@pytest.fixture
def proxy(service: Service) -> Iterator[BreakingProxy]:
    port = int(service.environment["TOQUE_BASE_URL"].rsplit(":")[-1].removesuffix("/v1"))
    with breaking_proxy(port) as proxy:
        yield proxy


@pytest.fixture
def through(service: Service, proxy: BreakingProxy, tmp_path: Path) -> Service:
    """The command with a state folder of its own, by way of the proxy."""
    ours = {"TOQUE_BASE_URL": f"http://127.0.0.1:{proxy.port}/v1", "XDG_STATE_HOME": str(tmp_path / "state")}
    return Service(service.environment | ours, service.database)


def records(service: Service) -> list[Path]:
    return list(Path(service.environment["XDG_STATE_HOME"]).rglob("*.json"))


def newest_upload(service: Service) -> tuple[Upload, list[UploadPart]]:
    with service.database.reader() as session:
        upload = session.scalars(select(Upload).order_by(Upload.created_at.desc())).first()
        assert upload is not None
        parts = session.scalars(select(UploadPart).where(UploadPart.upload_id == upload.id)).all()
    return upload, list(parts)


def check_uploaded(service: Service, output: str, large: Path) -> None:
    file = json.loads(output)
    assert (file["bytes"], file["filename"], file["purpose"]) == (SIZE, "large.bin", "user_data")
    assert file["sha256"] == hashlib.sha256(large.read_bytes()).hexdigest()
    upload, _ = newest_upload(service)
    assert (upload.status, upload.file_id) == ("completed", file["id"])
    assert records(service) == []


def test_a_large_file_goes_up_in_parts(through: Service, large: Path) -> None:
    done = through.run("files", "upload", large, "--purpose", "user_data", "--json")
    assert done.exit_code == 0, done.output
    check_uploaded(through, done.stdout, large)
    assert len(newest_upload(through)[1]) == 8


def test_a_connection_that_breaks_costs_what_was_on_its_way(
    through: Service, proxy: BreakingProxy, large: Path
) -> None:
    """It breaks once, in the middle: the same command sends again what was lost, and nothing else."""
    proxy.allow(2 * PART)
    mending = threading.Thread(
        target=lambda: (wait_until(lambda: proxy.sent >= 2 * PART, "it breaks", 60), proxy.mend())
    )
    mending.start()
    done = through.run("files", "upload", large, "--purpose", "user_data", "--json")
    mending.join()
    assert done.exit_code == 0, done.output
    check_uploaded(through, done.stdout, large)
    assert len(newest_upload(through)[1]) == 8


def test_a_command_that_gave_up_is_run_again(
    through: Service, proxy: BreakingProxy, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_RETRIES", 0)
    monkeypatch.setattr(uploads, "_AT_ONCE", 1)
    proxy.allow(2 * PART + PART // 2)
    broken = through.run("files", "upload", large, "--purpose", "user_data")
    assert broken.exit_code == 1
    assert "run the command again" in broken.stderr
    upload, parts = newest_upload(through)
    assert (upload.status, len(parts), len(records(through))) == ("pending", 2, 1)

    proxy.mend()
    before = proxy.sent
    done = through.run("files", "upload", large, "--purpose", "user_data", "--json")
    assert done.exit_code == 0, done.output
    check_uploaded(through, done.stdout, large)
    assert newest_upload(through)[0].id == upload.id
    assert proxy.sent - before < SIZE - 2 * PART + 100_000, "parts that were there are not sent again"


def test_a_command_that_was_killed_is_run_again(through: Service, proxy: BreakingProxy, large: Path) -> None:
    released = threading.Event()
    proxy.allow(6 * PART, then_stall=released)
    command = through.start(
        *("files", "upload", large, "--purpose", "user_data"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: proxy.sent >= 6 * PART, "most of it went up", 60)
    command.kill()
    command.communicate()
    released.set()
    upload, parts = newest_upload(through)
    assert upload.status == "pending"
    assert len(parts) >= 2

    proxy.mend()
    before = proxy.sent
    done = through.run("files", "upload", large, "--purpose", "user_data", "--json")
    assert done.exit_code == 0, done.output
    check_uploaded(through, done.stdout, large)
    assert newest_upload(through)[0].id == upload.id
    there = sum(part.bytes for part in parts)
    assert proxy.sent - before < SIZE - there + 100_000, "parts that were there are not sent again"


def test_a_file_that_changed_or_an_upload_that_is_gone_begins_anew(
    through: Service, proxy: BreakingProxy, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_RETRIES", 0)
    proxy.allow(PART)
    assert through.run("files", "upload", large, "--purpose", "user_data").exit_code == 1
    proxy.mend()
    upload, _ = newest_upload(through)
    with through.database.writer() as session:
        session.get_one(Upload, upload.id).status = "cancelled"
    done = through.run("files", "upload", large, "--purpose", "user_data", "--json")
    assert done.exit_code == 0, done.output
    check_uploaded(through, done.stdout, large)
    assert newest_upload(through)[0].id != upload.id
    with through.database.reader() as session:
        assert session.get_one(File, json.loads(done.stdout)["id"]).bytes == SIZE
