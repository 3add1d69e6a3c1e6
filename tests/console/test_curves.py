"""The metrics of a job, read from its log on both databases."""

from __future__ import annotations

import numpy as np
import pytest
from openai import OpenAI
from sqlalchemy import event, insert

from app.console.jobs import curve_cache
from app.console.jobs import curves as module
from app.console.jobs.curve_cache import CurveCache
from app.console.jobs.curves import Curves
from app.console.jobs.figures import figures_of
from app.console.jobs.points import MAX_COLUMNS, points
from app.core.database import Database
from app.fine_tuning.models import Event
from tests.support.jobs import create
from tests.support.standin_worker import StandInWorker


@pytest.fixture
def worker(client: OpenAI, database: Database) -> StandInWorker:
    create(client)
    return StandInWorker(database)


def record(worker: StandInWorker, first: int, last: int, total: int) -> None:
    """Many steps at once."""
    rows = [
        {
            "job_id": worker.job.id,
            "level": "info",
            "type": "metrics",
            "message": "Step",
            "data": worker.data(step, total, train_loss=9.0 if step == 7777 else 1.0),
        }
        for step in range(first, last + 1)
    ]
    with worker.database.writer() as session:
        session.execute(insert(Event), rows)


def test_all_steps_are_read_once_and_then_only_new_ones(
    worker: StandInWorker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 1000)
    record(worker, 1, 2500, 4000)
    cache = CurveCache()
    first = cache.read(database, worker.job.id)
    assert first.steps.tolist() == list(range(1, 2501))
    assert (first.last_step, first.total_steps) == (2500, 4000)

    worker.step(2501, 4000, train_loss=0.25, valid_loss=0.5)
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    second = cache.read(database, worker.job.id)
    assert second.last_step == 2501
    assert len([each for each in statements if "fine_tuning_events" in each]) == 1
    steps, values = second.measured("valid_loss")
    assert (steps.tolist(), values.tolist()) == ([2501], [0.5])
    assert first.last_step == 2500, "what was read before has not changed"


def test_other_lines_of_the_log_and_other_jobs_are_left_out(
    client: OpenAI, worker: StandInWorker, database: Database
) -> None:
    create(client)
    other = StandInWorker(database)
    worker.step(1, 10, train_loss=3.0)
    worker.checkpoint(1)
    other.step(1, 10, train_loss=4.0)
    found = CurveCache().read(database, worker.job.id)
    assert found.measured("train_loss")[1].tolist() == [3.0]
    assert "train_reward_margin" not in found.columns


def test_the_points_of_a_long_job_are_few_and_keep_a_spike(worker: StandInWorker, database: Database) -> None:
    record(worker, 1, 20_000, 20_000)
    found = CurveCache().read(database, worker.job.id)
    drawn = points(found, 800, 0, None)
    sizes = {name: len(at) for name, (at, _) in drawn["lines"].items()}
    assert sizes["train_loss"] <= 3200
    assert all(size <= 3200 for size in sizes.values())
    at, values = drawn["lines"]["train_loss"]
    assert values.max() == 9.0
    assert at[int(np.argmax(values))] == 7777
    assert max(len(at) for at, _ in points(found, 10**9, 0, None)["lines"].values()) <= 4 * MAX_COLUMNS

    closer = points(found, 800, 7000, 8000)["lines"]["train_loss"]
    assert closer[0].tolist() == list(range(6999, 8002)), "every step, and one on either side"


def test_the_table_has_the_evaluations_and_some_steps(worker: StandInWorker, database: Database) -> None:
    record(worker, 1, 500, 1000)
    worker.step(501, 1000, full_valid_loss=0.5)
    found = figures_of(CurveCache().read(database, worker.job.id))
    assert found.steps == 501
    assert len(found.rows) <= 60
    named = found.names.index("full_valid_loss")
    assert [(step, values[named]) for step, values in found.rows if values[named] is not None] == [(501, 0.5)]
    assert figures_of(Curves()).rows == ()


def test_the_cache_keeps_the_jobs_that_were_asked_about_last(
    client: OpenAI, worker: StandInWorker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curve_cache, "_KEPT_NUMBERS", 10)
    record(worker, 1, 100, 100)
    create(client)
    other = StandInWorker(database)
    other.step(1, 10)
    cache = CurveCache()
    cache.read(database, worker.job.id)
    cache.read(database, other.job.id)
    assert cache.kept == [other.job.id]
