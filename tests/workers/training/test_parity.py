"""Trained and served are held against each other; here transformers and PEFT stand behind vLLM's routes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import select

from app.core.database import Database
from app.core.settings import Settings
from app.models.adapters.models import Adapter
from app.storage import open_storage
from tests.support.chat_templates import THINKING
from tests.support.examples import lines_of
from tests.support.reference_engine import Reference, log, running
from tests.support.tiny_model import TINY
from tests.support.waiting import wait_until
from tests.support.worker import create, ended, run_worker

TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Soup?"},
    {"role": "assistant", "reasoning": "Hm.", "content": "Leek."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "reasoning": "Sweet.", "content": "Pie."},
]
"""A template that thinks leaves the first thought out once the second question is asked."""


@pytest.fixture
def reference(settings: Settings, database: Database, base_model_dir: Path) -> Reference:
    return Reference(base_model_dir, database, open_storage(settings))


@pytest.mark.one_database
def test_a_job_succeeds_once_an_engine_serves_what_was_trained(
    client: OpenAI, settings: Settings, database: Database, reference: Reference, tmp_path: Path
) -> None:
    job = create(client)
    with running(reference), run_worker(settings, tmp_path):
        done = ended(client, job.id)
    assert done.status == "succeeded", done.error
    lines = log(client, job.id)
    [verdict] = [line for line in lines if line.startswith("Served as trained: ")]
    assert lines.index(verdict) < lines.index("The job has successfully completed")
    with database.reader() as session:
        parity = session.get_one(Adapter, done.fine_tuned_model).parity
    assert parity is not None
    assert parity["tokens"] > 10
    assert parity["distance"] < 0.1 < 5 * parity["distance"] + parity["effect"]
    assert f"{parity['distance']:.4f}" in verdict


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_conversations_in_several_sequences_are_served_as_trained(
    client: OpenAI, settings: Settings, reference: Reference, tmp_path: Path
) -> None:
    settings.base_models[0].chat_template = reference.chat_template = THINKING
    job = create(client, lines_of([{"messages": TURNS}] * 12))
    with running(reference), run_worker(settings, tmp_path):
        done = ended(client, job.id)
    assert done.status == "succeeded", done.error
    [verdict] = [line for line in log(client, job.id) if line.startswith("Served as trained: ")]
    first = len("<think>\nHm.\n</think>\n\nLeek.") + 1
    second = len("<think>\nSweet.\n</think>\n\nPie.") + 1
    assert f"log-probabilities of {3 * second} tokens" in verdict
    prompts = [template_length(reference, TURNS[:count]) for count in (1, 3)]
    assert done.trained_tokens == 2 * 12 * (sum(prompts) + first + second + 2)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_engine_that_writes_earlier_turns_differently_is_found(
    client: OpenAI, settings: Settings, reference: Reference, tmp_path: Path
) -> None:
    settings.base_models[0].chat_template = THINKING
    reference.chat_template = THINKING.replace("loop.index0 > at.question and ", "")
    assert reference.chat_template != THINKING
    job = create(client, lines_of([{"messages": TURNS}] * 12))
    with running(reference), run_worker(settings, tmp_path):
        failed = ended(client, job.id)
    assert (failed.status, failed.error.code) == ("failed", "parity_failed")
    assert "other tokens in the engine" in failed.error.message


def template_length(reference: Reference, turns: list[dict[str, Any]]) -> int:
    asked = {"model": TINY, "messages": turns, "add_generation_prompt": True}
    return len(reference.tokenize(asked)["tokens"])


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"knows_adapters": False}, "the engine answers as the base alone"),
        ({"twist_logprobs": lambda logprob: logprob - 1.0}, "the engine serves something else"),
        ({"twist_logprobs": lambda _: float("nan")}, "log-probabilities are not numbers"),
        (
            {"twist_tokens": lambda tokens: [*tokens[:-1], 0]},
            "other tokens in the engine",
        ),
    ],
    ids=["base alone", "other weights", "not a number", "other template"],
)
def test_a_job_fails_where_something_else_is_served(
    fault: dict[str, Any],
    problem: str,
    client: OpenAI,
    settings: Settings,
    database: Database,
    reference: Reference,
    tmp_path: Path,
) -> None:
    for name, value in fault.items():
        setattr(reference, name, value)
    job = create(client)
    with running(reference), run_worker(settings, tmp_path):
        failed = ended(client, job.id)
    assert (failed.status, failed.error.code) == ("failed", "parity_failed")
    assert problem in failed.error.message
    assert (failed.fine_tuned_model, failed.result_files) == (None, [])
    with database.reader() as session:
        names = session.scalars(select(Adapter.name).where(Adapter.job_id == job.id)).all()
    assert all(":ckpt-step-" in name for name in names), "no model is published"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("good", [True, False])
def test_without_an_engine_it_is_published_and_compared_once_one_comes(
    good: bool, client: OpenAI, settings: Settings, database: Database, reference: Reference, tmp_path: Path
) -> None:
    reference.knows_adapters = good
    job = create(client)
    with run_worker(settings, tmp_path):
        done = ended(client, job.id)
        assert done.status == "succeeded"
        reason = "Not yet compared with an engine's answers: no engine of tiny is ready"
        assert any(line.startswith(reason) for line in log(client, job.id))

        with running(reference):
            start = "Served as trained: " if good else "The served model is not the trained one: "
            wait_until(lambda: log(client, job.id)[-1].startswith(start), "it is compared")
    with database.reader() as session:
        model = session.get_one(Adapter, done.fine_tuned_model)
    assert (model.parity is not None, model.quarantine_reason is None) == (good, good)
