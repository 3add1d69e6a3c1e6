"""All of a job's checkpoints as candidates, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import update

from app.core.database import Database
from app.fine_tuning.models import Checkpoint, FineTuningJob
from tests.app.comparisons.stub_engine import (
    StubEngine,
    add_tuned,
    create,
    ended,
    lines,
    number_asked,
    reference,
    upload,
)
from tests.support.service import BASE_MODEL

pytestmark = pytest.mark.one_database


def add_job(client: OpenAI, database: Database) -> tuple[str, list[str]]:
    """A job that has ended, trained on questions 0 to 19, and its models, the last under its final name."""
    training = upload(client, lines(range(20)), "fine-tune")
    job = client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=training)
    final = f"ft:{BASE_MODEL}:default::{job.id.removeprefix('ftjob-')}"
    checkpoints = {f"{final}:ckpt-step-{step}": step for step in (10, 20, 30)}
    for name, step in checkpoints.items():
        add_tuned(database, name, job_id=job.id, storage_key=f"steps/{step}")
        with database.writer() as session:
            row = {"job_id": job.id, "step_number": step, "fine_tuned_model_checkpoint": name}
            session.add(Checkpoint(**row, metrics={"step": step}))
    add_tuned(database, final, job_id=job.id, storage_key="steps/30")
    with database.writer() as session:
        ended = {"status": "succeeded", "fine_tuned_model": final}
        session.execute(update(FineTuningJob).where(FineTuningJob.id == job.id).values(**ended))
    return job.id, [*list(checkpoints)[:2], final]


def test_a_jobs_checkpoints_make_a_curve(client: OpenAI, database: Database, engine: StubEngine) -> None:
    job_id, models = add_job(client, database)

    def knows(body: dict[str, Any]) -> str:
        number = number_asked(body)
        return reference(number) if body["model"] == models[1] or number % 2 else "Stew."

    engine.respond = knows
    held_out = upload(client, lines(range(10, 80)))
    created = create(client, file=held_out, candidates=[{"type": "checkpoints", "job": job_id}])
    shown = [
        (each["name"], each["model"], each["step"], each["type"], each["job"])
        for each in created["candidates"]
    ]
    assert shown == [
        (f"step-{step}", model, step, "model", job_id)
        for step, model in zip((10, 20, 30), models, strict=True)
    ]
    assert (created["excluded"]["count"], created["questions"]) == (10, 60)
    done = ended(client, created["id"])
    [curve] = done["results"]["checkpoints"]
    assert (curve["job"], curve["best"], curve["overfits"]) == (job_id, models[1], True)
    assert [(point["step"], point["score"], point["is_final"]) for point in curve["points"]] == [
        (10, 0.5, False),
        (20, 1.0, False),
        (30, 0.5, True),
    ]
    assert len(engine.bodies) == 180


def test_a_checkpoint_that_is_also_named_is_asked_once(
    client: OpenAI, database: Database, engine: StubEngine
) -> None:
    job_id, models = add_job(client, database)
    held_out = upload(client, lines(range(100, 103)))
    named = [{"type": "model", "model": models[2], "name": "ours"}, {"type": "model", "model": models[0]}]
    all_of_them = {"type": "checkpoints", "job": job_id, "name": "ours"}
    created = create(client, file=held_out, candidates=[*named, all_of_them])
    assert [(each["name"], each["step"]) for each in created["candidates"]] == [
        ("ours", 30),
        (models[0], 10),
        ("ours-step-20", 20),
    ]
    assert ended(client, created["id"])["status"] == "succeeded"
    assert len(engine.bodies) == 9
