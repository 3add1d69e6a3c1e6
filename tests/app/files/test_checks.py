"""Files are checked once, whatever happens to the process that checks; jobs wait for it in the meantime."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from anyio import to_thread
from openai import OpenAI

from app.core.database import Database
from app.core.lease import Lease, LeaseLostError
from app.core.settings import Settings
from app.datasets.report import Progress, Report
from app.datasets.validation import validate_file
from app.files import checks
from app.files.models import File, FileCheck
from app.fine_tuning.models import FineTuningJob
from tests.support.service import BASE_MODEL, Service, run_service
from tests.support.training_files import training_bytes
from tests.support.waiting import wait_until

BAD = training_bytes() + b'{"messages": []}\n'


@pytest.fixture
def impatient(settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service that waits for no check, and whose checks are made by the test."""
    monkeypatch.setattr("app.files.checks.any_waits", lambda session: False)
    with run_service(settings.model_copy(update={"check_patience_seconds": 0.0})) as service:
        yield service


def upload(client: OpenAI, content: bytes) -> str:
    return client.files.create(file=("x.jsonl", content), purpose="fine-tune").id


def create(client: OpenAI, file: str, **parameters: Any):
    return client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=file, **parameters)


def check(database: Database, settings: Settings, lease_seconds: float = 60.0) -> checks.Claim | None:
    """What one process does: claim, read, record."""
    with database.writer() as session:
        claim = checks.claim_next(session, lease_seconds)
    if claim is not None:
        report = validate_file(settings.storage_root / claim.storage_key, None)
        with database.writer() as session:
            checks.finish(session, claim.lease, report)
    return claim


def status_of(client: OpenAI, job_id: str, settled: tuple[str, ...] = ("queued", "failed")):
    return wait_until(
        lambda: job if (job := client.fine_tuning.jobs.retrieve(job_id)).status in settled else None,
        "the job is admitted",
    )


def test_a_job_waits_for_the_check_of_its_file(
    impatient: Service, database: Database, settings: Settings
) -> None:
    with impatient.client() as client:
        job = create(client, upload(client, training_bytes(300)), hyperparameters={"n_epochs": 2})
        assert job.status == "validating_files"
        assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (2, "auto")
        assert client.fine_tuning.jobs.retrieve(job.id) == job
        assert check(database, settings) is not None
        admitted = status_of(client, job.id)
        assert admitted.status == "queued"
        assert (admitted.hyperparameters.n_epochs, admitted.hyperparameters.batch_size) == (2, 8)
        messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
        assert messages[0] == "Files validated, moving job to queued state"


@pytest.mark.parametrize(
    ("asked", "version", "notes"), [({"target_modules": "auto"}, 1, 0), ({"quantization": "nf4"}, 3, 1)]
)
def test_a_job_that_has_waited_goes_to_the_same_workers_as_one_that_has_not(
    impatient: Service,
    database: Database,
    settings: Settings,
    asked: dict[str, str],
    version: int,
    notes: int,
) -> None:
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": asked}}
    with impatient.client() as client:
        file = upload(client, training_bytes())
        waited = create(client, file, method=method)
        assert waited.status == "validating_files"
        assert check(database, settings) is not None
        assert status_of(client, waited.id).status == "queued"
        for job in (waited, create(client, file, method=method)):
            with database.reader() as session:
                assert session.get_one(FineTuningJob, job.id).spec_version == version
            events = client.fine_tuning.jobs.list_events(job.id)
            assert sum("stored in NF4" in event.message for event in events) == notes


def test_a_job_on_a_base_that_is_quantized_by_default_waits_for_its_check(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.files.checks.any_waits", lambda session: False)
    base = settings.base_models[0].model_copy(update={"quantization": "nf4"})
    changed = {"check_patience_seconds": 0.0, "base_models": [base]}
    with run_service(settings.model_copy(update=changed)) as service, service.client() as client:
        job = create(client, upload(client, training_bytes()))
        assert check(database, settings) is not None
        assert status_of(client, job.id).hyperparameters.to_dict()["quantization"] == "nf4"
        with database.reader() as session:
            version = session.get_one(FineTuningJob, job.id).spec_version
        assert version == 3, "no older worker trains on a base that is not quantized"
        assert any("stored in NF4" in each.message for each in client.fine_tuning.jobs.list_events(job.id))


def test_a_job_on_a_bad_file_fails_with_its_first_finding(
    impatient: Service, database: Database, settings: Settings
) -> None:
    with impatient.client() as client:
        bad = upload(client, BAD)
        training = create(client, bad)
        check(database, settings)
        failed = status_of(client, training.id)
        assert failed.status == "failed"
        assert failed.error.code == "invalid_training_file"
        assert failed.error.message.startswith("Line 13 has no messages (at /messages).")
        assert (failed.error.param, failed.finished_at is not None) == ("training_file", True)


def test_a_bad_held_out_file_is_refused_at_once(
    impatient: Service, database: Database, settings: Settings
) -> None:
    with impatient.client() as client:
        bad, good = upload(client, BAD), upload(client, training_bytes())
        check(database, settings)
        with pytest.raises(openai.BadRequestError) as refused:
            create(client, good, validation_file=bad)
        assert (refused.value.code, refused.value.param) == ("no_messages", "validation_file")


def test_a_waiting_job_can_be_cancelled(impatient: Service, database: Database, settings: Settings) -> None:
    with impatient.client() as client:
        job = create(client, upload(client, BAD))
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        check(database, settings)
        second = create(client, upload(client, training_bytes()))
        check(database, settings)
        assert status_of(client, second.id).status == "queued"
        assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"


def test_what_no_file_could_mend_is_refused_before_the_check(impatient: Service) -> None:
    with impatient.client() as client:
        file = upload(client, training_bytes())
        with pytest.raises(openai.BadRequestError) as refused:
            create(client, file, extra_body={"lora_rank": 64})
        assert refused.value.param == "lora_rank"
        assert list(client.fine_tuning.jobs.list()) == []


def test_a_lease_that_passed_is_anothers_and_the_late_report_counts_for_nothing(
    impatient: Service, database: Database, settings: Settings
) -> None:
    with impatient.client() as client:
        file = upload(client, BAD)
        with database.writer() as session:
            lost = checks.claim_next(session, -1.0)
            taken = checks.claim_next(session, 60.0)
            assert checks.claim_next(session, 60.0) is None
        assert lost is not None and taken is not None and taken.lease == Lease(file, 2)
        report = validate_file(settings.storage_root / taken.storage_key, None)
        empty = Report.model_validate(report.model_dump() | {"findings": [], "finding_counts": []})
        with database.writer() as session:
            with pytest.raises(LeaseLostError):
                checks.LEASES.renew(session, lost.lease, 60.0)
            with pytest.raises(LeaseLostError):
                checks.finish(session, lost.lease, empty)
        assert client.files.retrieve(file).status == "uploaded"
        with database.writer() as session:
            checks.finish(session, taken.lease, report)
            with pytest.raises(LeaseLostError):
                checks.finish(session, taken.lease, empty)
        found = client.files.retrieve(file)
        assert (found.status, found.status_details) == ("error", "Line 13 has no messages (at /messages).")


def test_a_file_whose_check_dies_each_time_is_given_up(impatient: Service, database: Database) -> None:
    with impatient.client() as client:
        file = upload(client, training_bytes())
        with database.writer() as session:
            for _ in range(checks.MAX_ATTEMPTS):
                assert checks.claim_next(session, -1.0) is not None
            assert checks.claim_next(session, -1.0) is None
        assert client.files.retrieve(file).status == "error"
        with pytest.raises(openai.BadRequestError) as refused:
            create(client, file)
        assert refused.value.code == "invalid_training_file"


def test_a_check_that_is_given_back_counts_as_no_attempt(impatient: Service, database: Database) -> None:
    with impatient.client() as client:
        upload(client, training_bytes())
        with database.writer() as session:
            for _ in range(2 * checks.MAX_ATTEMPTS):
                claim = checks.claim_next(session, 60.0)
                assert claim is not None
                checks.release(session, claim.lease)


def test_two_processes_share_the_files_and_check_each_once(settings: Settings, database: Database) -> None:
    with run_service(settings) as one, run_service(settings) as other:
        with one.client() as client, other.client() as second:
            files = [upload((client, second)[n % 2], training_bytes(10 + n)) for n in range(8)]
            for n, file in enumerate(files):
                assert client.files.wait_for_processing(file, poll_interval=0.05).status == "processed"
                with database.reader() as session:
                    assert session.get_one(File, file).examples == 10 + n
        with database.reader() as session:
            assert [found.epoch for found in session.query(FileCheck)] == [1] * 8


def test_what_a_stopped_process_left_is_checked_by_the_next(settings: Settings, database: Database) -> None:
    quiet = pytest.MonkeyPatch()
    with quiet.context() as patched:
        patched.setattr("app.files.checks.any_waits", lambda session: False)
        with run_service(settings) as service, service.client() as client:
            file = upload(client, training_bytes())
    with database.writer() as session:
        assert checks.claim_next(session, 0.2) is not None  # and then its process is killed
    with run_service(settings) as service, service.client() as client:
        assert client.files.wait_for_processing(file, poll_interval=0.05).status == "processed"


def test_preference_pairs_are_for_their_own_method(client: OpenAI) -> None:
    pair = {
        "input": {"messages": [{"role": "user", "content": "Leeks?"}]},
        "preferred_output": [{"role": "assistant", "content": "Three."}],
        "non_preferred_output": [{"role": "assistant", "content": "None."}],
    }
    lines = [
        json.dumps(pair | {"non_preferred_output": [{"role": "assistant", "content": str(n)}]})
        for n in range(10)
    ]
    file = upload(client, "\n".join(lines).encode())
    assert client.files.wait_for_processing(file, poll_interval=0.05).status == "processed"
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, file)
    assert (refused.value.code, refused.value.param) == ("wrong_format", "training_file")
    assert "Line 1 " in str(refused.value)


def test_a_held_out_file_that_equals_the_training_file_is_remarked_on(client: OpenAI) -> None:
    job = create(client, upload(client, training_bytes()), validation_file=upload(client, training_bytes()))
    warnings = [
        event.message for event in client.fine_tuning.jobs.list_events(job.id) if event.level == "warn"
    ]
    assert any("equals the training file" in message for message in warnings)


def test_what_a_check_has_found_so_far_is_told(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    half = Progress(bytes_read=50, bytes=100, lines=7, examples=6, finding_counts=[], findings=[])

    def read_slowly(path: str, progress: str) -> bytes:
        Path(progress).write_text(half.model_dump_json())
        go_on.wait()
        return validate_file(Path(path), None).model_dump_json().encode()

    async def in_thread(_function: object, path: str, *arguments: Any, **_options: Any) -> bytes:
        return await to_thread.run_sync(read_slowly, path, arguments[-1])

    monkeypatch.setattr("app.files.checker.run_in_child", in_thread)
    monkeypatch.setattr("app.files.checker._LOOK_SECONDS", 0.05)

    def progress_of(file_id: str) -> Progress | None:
        with database.reader() as session:
            return checks.progress_of(session, file_id)

    with run_service(settings) as service, service.client() as client:
        file_id = upload(client, training_bytes())
        assert wait_until(lambda: progress_of(file_id), "the check tells") == half
        assert client.files.retrieve(file_id).status == "uploaded"
        go_on.set()
        wait_until(lambda: client.files.retrieve(file_id).status == "processed", "the check ends")
        assert progress_of(file_id) is None
