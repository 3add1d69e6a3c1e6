"""A job's trace goes on in the worker: the attempt, the loading of the model, and each step."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai import OpenAI

from app.core.settings import Settings
from tests.support.otlp_receiver import run_receiver, traced
from tests.support.worker import create, ended, run_worker


@pytest.mark.one_database
def test_one_trace_from_the_creation_to_the_last_step(
    client: OpenAI, settings: Settings, tmp_path: Path
) -> None:
    with run_receiver() as receiver, traced(receiver, "toque-api"):
        job = create(client)
        [created] = receiver.wait_for("POST /v1/fine_tuning/jobs")
        with run_worker(settings, tmp_path, **receiver.environment()):
            assert ended(client, job.id).status == "succeeded"
    [attempt] = receiver.wait_for("train")
    assert (attempt.service, attempt.trace_id) == ("toque-worker", created.trace_id)
    assert attempt.parent_id == created.span_id
    assert attempt.attributes["toque.job_id"] == job.id
    steps = receiver.wait_for("step", created.trace_id, count=12)
    assert [step.attributes["toque.step"] for step in steps] == list(range(1, 13))
    [load] = receiver.wait_for("load", created.trace_id)
    assert {each.parent_id for each in (load, *steps)} == {attempt.span_id}
    assert 0 < sum(step.seconds for step in steps) + load.seconds <= attempt.seconds
