"""What is sent to a tracker: each step once, whatever dies, and nothing of it reaches the job."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from app.core.database import Database
from app.core.lease import Lease
from app.core.settings import Settings
from app.fine_tuning import queue, tracked_runs
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import Event, FineTuningJob, TrackedRun
from tests.support.job_rows import add_job
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until
from workers.tracking import sender
from workers.tracking.sender import Sender
from workers.tracking.tracker import RunDetails

JOB = "ftjob-t"


class FakeTracker:
    """A tracker that remembers what it was sent, and fails as it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float], float]] = []
        self.opened: list[RunDetails] = []
        self.endings: list[str | None] = []
        self.error: Exception | None = None
        self.dies_after_step: int | None = None
        self.url: str | None = "https://tracker.test/runs/1"

    def open(self, tracker: str, details: RunDetails) -> FakeTracker:
        if self.error:
            raise self.error
        assert tracker == "mlflow"
        self.opened.append(details)
        return self

    @property
    def last_step(self) -> int | None:
        return self.steps[-1][0] if self.steps else None

    def log(self, step: int, metrics: dict[str, float], at: float) -> None:
        self.steps.append((step, metrics, at))
        if step == self.dies_after_step:
            self.dies_after_step = None
            raise ConnectionError("http://user:secret@tracker is gone")

    def close(self, ending: str | None) -> None:
        self.endings.append(ending)


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> FakeTracker:
    fake = FakeTracker()
    monkeypatch.setattr(sender, "open_run", fake.open)
    monkeypatch.setattr(tracked_runs, "BACK_OFF", lambda _state: 0.0)
    return fake


@pytest.fixture
def lease(settings: Settings, database: Database) -> Lease:
    """A job that is running, whose metrics are tracked."""
    settings.tracker = "mlflow"
    settings.poll_seconds = 0.02
    settings.heartbeat_seconds = 100.0  # so that no lease expires that a test has not let expire
    with database.writer() as session:
        add_job(session)
        session.execute(update(FineTuningJob).values(status="queued", integrations=None))
        tracked_runs.track(session, settings, session.get_one(FineTuningJob, JOB))
    with database.writer() as session:
        job = claim_next(session, "worker_a", [BASE_MODEL], 60.0)
    assert job is not None
    return queue.LEASES.lease_of(job)


@contextmanager
def sending(settings: Settings, database: Database) -> Iterator[None]:
    """Runs a sender, as its process does, until the block ends."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task: asyncio.Task[None] | None = None

        async def run() -> None:
            nonlocal task
            task = asyncio.current_task()
            await Sender(settings, database).run()

        def work() -> None:
            asyncio.set_event_loop(loop)
            with pytest.raises(asyncio.CancelledError):
                loop.run_until_complete(run())

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            wait_until(lambda: task, "the sender runs")
            assert task is not None
            loop.call_soon_threadsafe(task.cancel)
            thread.join()


def take_step(database: Database, lease: Lease, step: int) -> None:
    data = {"step": step, "train_loss": 1 / step, "learning_rate": 0.1, "total_steps": 9, "epoch": 1}
    with database.writer() as session:
        queue.record_step(session, lease, step, f"Step {step}", data=data, estimated_finish=0.0)


def fail_job(database: Database, lease: Lease) -> None:
    with database.writer() as session:
        queue.fail(session, lease, code="internal_error", message="It failed.", param=None)


def read(database: Database, work: Callable[[Session], Any]) -> Any:
    with database.reader() as session:
        return work(session)


def has_ended(database: Database) -> bool:
    return read(database, lambda session: session.get_one(TrackedRun, JOB).ended_at is not None)


def messages(database: Database, level: str) -> list[str]:
    events = read(database, lambda session: session.query(Event).filter_by(job_id=JOB, level=level).all())
    return [event.message for event in events if event.type == "message"]


def test_each_step_is_sent_once_while_the_job_runs(
    settings: Settings, database: Database, lease: Lease, tracker: FakeTracker
) -> None:
    with sending(settings, database):
        for step in (1, 2):
            take_step(database, lease, step)
            wait_until(lambda: tracker.last_step == step, f"step {step} is sent")  # noqa: B023
        take_step(database, lease, 3)
        fail_job(database, lease)
        wait_until(lambda: has_ended(database), "the run has ended")
    assert [step for step, *_ in tracker.steps] == [1, 2, 3]
    assert tracker.steps[1][1] == {"train_loss": 0.5, "learning_rate": 0.1, "epoch": 1.0}
    assert tracker.endings == ["failed"]
    [details] = tracker.opened
    assert (details.project, details.name, details.config["model"]) == ("toque", JOB, BASE_MODEL)
    assert "The job's metrics are sent to MLflow: https://tracker.test/runs/1" in messages(database, "info")


def test_many_steps_are_sent_in_slices_and_nothing_is_written_in_between(
    settings: Settings,
    database: Database,
    lease: Lease,
    tracker: FakeTracker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracked_runs, "_STEPS_AT_ONCE", 2)
    recorded: list[int] = []
    record_sent = tracked_runs.record_sent

    def record(session: Session, held: Lease, step: int) -> None:
        recorded.append(step)
        record_sent(session, held, step)

    monkeypatch.setattr(tracked_runs, "record_sent", record)
    for step in range(1, 6):
        take_step(database, lease, step)
    with sending(settings, database):
        wait_until(lambda: tracker.last_step == 5, "all are sent")
        fail_job(database, lease)
        wait_until(lambda: has_ended(database), "the run has ended")
    assert [step for step, *_ in tracker.steps] == [1, 2, 3, 4, 5]
    assert recorded == [2, 4, 5]


def test_a_run_goes_on_where_the_tracker_has_it(
    settings: Settings, database: Database, lease: Lease, tracker: FakeTracker
) -> None:
    for step in (1, 2, 3):
        take_step(database, lease, step)
    # As after kill -9: two steps had been sent, and only the first was recorded.
    tracker.steps = [(1, {}, 0.0), (2, {}, 0.0)]
    with database.writer() as session:
        session.execute(update(TrackedRun).values(sent_step=1, lease_epoch=1, lease_until=1.0))
    fail_job(database, lease)
    with sending(settings, database):
        wait_until(lambda: has_ended(database), "the run has ended")
    assert [step for step, *_ in tracker.steps] == [1, 2, 3]


def test_a_broken_tracker_is_noted_once_and_asked_again(
    settings: Settings, database: Database, lease: Lease, tracker: FakeTracker
) -> None:
    tracker.error = ModuleNotFoundError("No module named 'mlflow'", name="mlflow")
    take_step(database, lease, 1)
    with sending(settings, database):
        wait_until(lambda: messages(database, "warn"), "it is noted")
        tracker.error, tracker.dies_after_step = None, 1
        take_step(database, lease, 2)
        fail_job(database, lease)
        wait_until(lambda: has_ended(database), "the run has ended")
    assert [step for step, *_ in tracker.steps] == [1, 2]
    [warning] = messages(database, "warn")
    assert "cannot be sent to MLflow now: mlflow is not installed" in warning
    assert read(database, lambda session: session.get_one(FineTuningJob, JOB).status) == "failed"


def test_a_warning_tells_no_secrets(
    settings: Settings, database: Database, lease: Lease, tracker: FakeTracker
) -> None:
    tracker.error = ConnectionError("http://user:secret@tracker is gone")
    take_step(database, lease, 1)
    with sending(settings, database):
        [warning] = wait_until(lambda: messages(database, "warn"), "it is noted")
    assert "ConnectionError" in warning
    assert "secret" not in warning


def test_what_cannot_be_sent_is_given_up_three_days_after_the_end(
    settings: Settings, database: Database, lease: Lease, tracker: FakeTracker
) -> None:
    tracker.error = ConnectionError()
    take_step(database, lease, 1)
    fail_job(database, lease)
    with database.writer() as session:
        old = FineTuningJob.finished_at - tracked_runs.GIVEN_UP_SECONDS
        session.execute(update(FineTuningJob).values(finished_at=old))
    with sending(settings, database):
        wait_until(lambda: has_ended(database), "it is given up")


def test_a_job_that_was_never_trained_opens_no_run(
    settings: Settings, database: Database, lease: Lease, tracker: FakeTracker
) -> None:
    fail_job(database, lease)
    with sending(settings, database):
        wait_until(lambda: has_ended(database), "the run has ended")
    assert tracker.opened == []


def test_a_sender_that_is_stopped_gives_its_runs_back(
    settings: Settings, database: Database, lease: Lease, tracker: FakeTracker
) -> None:
    take_step(database, lease, 1)
    with sending(settings, database):
        wait_until(lambda: tracker.steps, "a step is sent")
    assert read(database, lambda session: session.get_one(TrackedRun, JOB).lease_until) is None
    assert tracker.endings == [None]
    take_step(database, lease, 2)
    with sending(settings, database):
        wait_until(lambda: tracker.last_step == 2, "the next sender goes on")
    assert [step for step, *_ in tracker.steps] == [1, 2]
