"""Imported adapters are asked for an answer by the engine; those that can give none are quarantined."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.database import Database
from app.core.settings import Settings
from app.models.adapters.models import Adapter
from tests.support.engine_thread import Running
from tests.support.job_rows import add_job
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until
from workers.inference.adapter_probe import find_problem

pytestmark = pytest.mark.one_database
NAMES = ("good", "brief", "nan", "monotonous", "failing", "garbled", "away", "trained")


@pytest.fixture
def running(settings: Settings, database: Database, pids_file: Path) -> Iterator[Running]:
    with database.writer() as session:
        add_job(session)
        for name in NAMES:
            job = "ftjob-t" if name == "trained" else None
            adapter = Adapter(name=name, project_id="proj_t", base_model=BASE_MODEL, storage_key=name)
            adapter.job_id = job
            session.add(adapter)
    changes = {"heartbeat_seconds": 0.2, "poll_seconds": 0.01}
    running = Running(settings.model_copy(update=changes), database)
    yield running
    running.stop()


def test_what_answers_nothing_is_quarantined_with_the_reason(running: Running, database: Database) -> None:
    def adapters() -> dict[str, Adapter]:
        with database.reader() as session:
            return {adapter.name: adapter for adapter in session.query(Adapter)}

    def are_probed() -> bool:
        rows = adapters()
        broken = [rows[name].quarantine_reason for name in ("nan", "monotonous", "failing")]
        return rows["good"].probed_at is not None and rows["brief"].probed_at is not None and all(broken)

    running.becomes("ready")
    wait_until(are_probed, "all are probed")
    rows = adapters()
    reasons = {name: row.quarantine_reason for name, row in rows.items() if row.quarantine_reason}
    assert reasons.keys() == {"nan", "monotonous", "failing"}
    assert "not numbers" in (reasons["nan"] or "")
    assert "nothing but ' soup'" in (reasons["monotonous"] or "")
    assert rows["garbled"].probed_at is None, "what is not understood says nothing either"
    assert rows["away"].probed_at is None, "an engine that cannot be asked says nothing about an adapter"
    assert rows["trained"].probed_at is None, "it is compared with the trainer instead"
    row = running.row()
    assert row is not None and row.status == "ready"


@pytest.mark.parametrize(
    ("tokens", "logprobs", "base_tokens", "problem"),
    [
        (["a", "b"], [-1.0, -2.0], ["c", "d"], None),
        (["a"] * 16, [-1.0] * 16, ["b", "b"], None),  # the base does it, too
        (["a"] * 16, [-1.0] * 16, ["b", "c"], "nothing but 'a'"),
        (["<|im_end|>"], [-10.8], ["b", "c"], "log-probability of -10.8"),
        (["a"], [-1.0], ["b", "c"], None),  # it has learnt to answer with one word
        (["a", "b"], [-1.0, None], ["b", "c"], "not numbers"),
        (["a", "b"], [-1.0, float("-inf")], ["b", "c"], "not numbers"),
    ],
)
def test_what_is_a_problem(
    tokens: list[str], logprobs: list[float | None], base_tokens: list[str], problem: str | None
) -> None:
    found = find_problem({"tokens": tokens, "token_logprobs": logprobs}, {"tokens": base_tokens})
    assert (found is None) if problem is None else problem in (found or "")
