"""One project's files do not keep another's from being checked: turns, lanes and limits."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from openai import OpenAI
from sqlalchemy import func, select, update

from app.core.child_process import run_in_child
from app.core.database import Database
from app.core.settings import Settings
from app.datasets.validation import validate_file, validate_to_json
from app.files import checks
from app.files.models import FileCheck
from tests.support.jobs import create
from tests.support.service import OTHER_KEY, run_service
from tests.support.training_files import training_bytes
from tests.support.waiting import wait_until

LINES = b'{"messages":[]}\n' * 100_000


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """40 million lines in 3.7 MB."""
    packed = gzip.compress(LINES * 10, 1)
    return packed * 40


def upload(client: OpenAI, content: bytes, name: str = "x.jsonl") -> str:
    return client.files.create(file=(name, content), purpose="fine-tune").id


def claim(database: Database, **bounds: int) -> str | None:
    with database.writer() as session:
        claimed = checks.claim_next(session, 60.0, **bounds)
    return claimed.file_id if claimed else None


def test_a_file_is_checked_beside_another_projects_bombs(
    settings: Settings, database: Database, bomb: bytes
) -> None:
    with run_service(settings) as service, service.client() as one, service.client(OTHER_KEY) as other:
        bombs = [upload(one, bomb, "bomb.jsonl.gz") for _ in range(3)]
        file = upload(other, training_bytes())
        assert (
            other.files.wait_for_processing(file, poll_interval=0.05, max_wait_seconds=60).status
            == "processed"
        )
        for each in bombs:
            one.files.delete(each)

        def are_over() -> bool:
            with database.reader() as session:
                return all(session.get_one(FileCheck, each).finished_at is not None for each in bombs)

        wait_until(are_over, "the checks of the deleted files end", 30)
        wait_until(lambda: not any(map(is_busy, children())), "nobody reads them any more", 30)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def is_busy(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.cpu_percent(0.1) > 50
    return False


@pytest.mark.one_database
def test_a_file_with_too_many_lines_is_refused_with_the_limit(
    settings: Settings, database: Database, bomb: bytes
) -> None:
    limited = settings.model_copy(update={"max_file_lines": 100_000})
    with run_service(limited) as service, service.client() as client:
        checked = client.files.wait_for_processing(upload(client, bomb), poll_interval=0.05)
        assert checked.status == "error"
        found = client.get(f"/files/{checked.id}/validation", cast_to=dict)["findings"]
    [limit] = [each for each in found if each["code"] == "too_many_lines"]
    assert limit["message"] == "The file has more than 100,000 lines (TOQUE_MAX_FILE_LINES)"
    assert limit["line"] == 100_001
    assert "raise the limit" in limit["hint"]


@pytest.mark.one_database
def test_a_check_that_takes_too_long_is_stopped(settings: Settings, database: Database, bomb: bytes) -> None:
    limits = {"max_check_seconds": 0.5, "max_file_lines": 10**9}
    with run_service(settings.model_copy(update=limits)) as service, service.client() as client:
        checked = client.files.wait_for_processing(upload(client, bomb), poll_interval=0.05)
    assert checked.status == "error"
    assert checked.status_details == "The check was stopped after 0.5 seconds (TOQUE_MAX_CHECK_SECONDS)."


@pytest.mark.parametrize("content", [b"\n", LINES[:16]], ids=["empty", "wrong"])
@pytest.mark.parametrize("processes", [1, 2])
def test_the_limit_on_lines_counts_all_of_them(content: bytes, processes: int, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content * (2**24 // len(content)))
    report = validate_file(path, None, processes=processes, max_lines=300_000)
    assert [found.code for found in report.findings if found.line == 300_001] == ["too_many_lines"]
    path.write_bytes(content * 1000)
    assert validate_file(path, None, max_lines=1000).counts.lines == 1000
    found = {each.code for each in validate_file(path, None, max_lines=999).findings}
    assert "too_many_lines" in found


def test_projects_take_turns(settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.files.checks.any_waits", lambda session: False)
    with run_service(settings) as service, service.client() as one, service.client(OTHER_KEY) as other:
        ones = [upload(one, training_bytes(10 + n)) for n in range(3)]
        others = [upload(other, training_bytes(10 + n)) for n in range(2)]
        order = [claim(database) for _ in range(6)]
    assert order == [ones[0], others[0], ones[1], others[1], ones[2], None]


def test_what_unpacks_into_much_is_no_small_file(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.files.checks.any_waits", lambda session: False)
    with run_service(settings) as service, service.client() as client:
        file = upload(client, training_bytes())
        with database.writer() as session:
            claimed = checks.claim_next(session, 60.0, max_bytes=2**20)
            assert claimed is not None
            checks.set_aside(session, claimed.lease)
        assert claim(database, max_bytes=2**20) is None
        assert claim(database) == file
        with database.reader() as session:
            assert session.get_one(FileCheck, file).attempts == 1


def test_a_deleted_file_is_checked_only_for_a_job_that_waits(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_service(settings.model_copy(update={"check_patience_seconds": 0.0})) as service:
        with service.client() as client, monkeypatch.context() as patched:
            patched.setattr("app.files.checks.any_waits", lambda session: False)
            used, unused = upload(client, training_bytes()), upload(client, training_bytes(20))
            job = create(client, training_file=used)
            assert job.status == "validating_files"
            client.files.delete(used)
            client.files.delete(unused)
        with service.client() as client:
            wait_until(
                lambda: client.fine_tuning.jobs.retrieve(job.id).status == "queued", "the job is admitted"
            )

            def is_over() -> bool:
                with database.reader() as session:
                    return session.get_one(FileCheck, unused).finished_at is not None

            wait_until(is_over, "the other check ends")
    with database.reader() as session:
        assert session.get_one(FileCheck, unused).report is None


def test_a_check_that_is_stopped_leaves_no_process_behind(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINES * 40)
    before = children()

    def scans(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return "spawn_main" in str(process.cmdline())
        return False

    def parts() -> list[psutil.Process]:
        return [each for each in children() if each not in before and scans(each)]

    async def check() -> list[psutil.Process]:
        call = asyncio.create_task(run_in_child(validate_to_json, str(path), None, 2, 10**9))
        started = await asyncio.to_thread(wait_until, parts, "a second process scans")
        call.cancel()
        await asyncio.wait([call])
        return started

    assert psutil.wait_procs(asyncio.run(check()), timeout=60)[1] == []


def test_many_deleted_files_are_given_up_in_short_transactions(
    settings: Settings, database: Database
) -> None:
    with run_service(settings) as service, service.client() as client:
        files = [upload(client, training_bytes(number)) for number in range(1, 46)]
        for each in files:
            client.files.delete(each)
    ended = FileCheck.finished_at.is_not(None)
    with database.writer() as session:
        session.execute(update(FileCheck).values(finished_at=None, lease_until=None))
    counts: list[int] = []
    for _ in range(3):
        assert claim(database) is None
        with database.reader() as session:
            counts.append(session.scalar(select(func.count()).where(ended)) or 0)
    assert counts == [20, 40, 45]
