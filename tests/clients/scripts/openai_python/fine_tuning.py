"""openai-python: a fine-tuning job from its file to its model, and what a job can be asked."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest
from openai import BadRequestError, ConflictError, NotFoundError, OpenAI

client = OpenAI()
BASE = os.environ["BASE_MODEL"]


@pytest.fixture(scope="module")
def training_file() -> str:
    examples = [
        {
            "messages": [
                {"role": "user", "content": f"What is on the menu at table {table}?"},
                {"role": "assistant", "content": "Leek soup."},
            ]
        }
        for table in range(12)
    ]
    data = "".join(json.dumps(example) + "\n" for example in examples)
    return client.files.create(file=("menu.jsonl", data.encode()), purpose="fine-tune").id


@pytest.fixture(scope="module")
def job(training_file: str) -> Any:
    created = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=training_file,
        suffix="menu",
        seed=7,
        metadata={"client": "openai-python"},
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {"n_epochs": 4, "batch_size": 4, "learning_rate_multiplier": "auto"}
            },
        },
    )
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        seen = client.fine_tuning.jobs.retrieve(created.id)
        if seen.status in ("succeeded", "failed", "cancelled"):
            assert seen.status == "succeeded", seen.error
            return seen
        time.sleep(1)
    raise AssertionError("the job did not end")


def test_a_job_succeeds_and_carries_what_was_asked_for(job: Any, training_file: str) -> None:
    assert job.object == "fine_tuning.job"
    assert (job.model, job.seed, job.training_file) == (BASE, 7, training_file)
    assert job.metadata == {"client": "openai-python"}
    assert job.method.supervised.hyperparameters.n_epochs == 4
    assert job.fine_tuned_model.startswith("ft:")
    assert job.trained_tokens > 0
    assert job.finished_at >= job.created_at


def test_its_model_answers_as_it_was_trained(job: Any) -> None:
    answer = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[{"role": "user", "content": "What is on the menu at table 40?"}],
        temperature=0,
        max_tokens=8,
    )
    assert answer.choices[0].message.content == "Leek soup."


def test_its_events_are_listed_and_paged(job: Any) -> None:
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    assert len(events) > 3
    assert {event.object for event in events} == {"fine_tuning.job.event"}
    assert any(event.type == "metrics" and event.data for event in events)


def test_its_checkpoints_are_models(job: Any) -> None:
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoints[0].metrics.train_loss is not None
    answer = client.chat.completions.create(
        model=checkpoints[0].fine_tuned_model_checkpoint,
        messages=[{"role": "user", "content": "What is on the menu at table 3?"}],
        max_tokens=4,
    )
    assert answer.choices[0].message.content


def test_its_results_are_a_file(job: Any) -> None:
    content = client.files.content(job.result_files[0]).text
    assert content.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")


def test_jobs_are_listed_by_metadata(job: Any) -> None:
    found = [each.id for each in client.fine_tuning.jobs.list(metadata={"client": "openai-python"})]
    assert job.id in found


def test_a_second_job_is_cancelled_and_then_stays_so(training_file: str) -> None:
    created = client.fine_tuning.jobs.create(model=BASE, training_file=training_file)
    assert client.fine_tuning.jobs.cancel(created.id).status == "cancelled"
    with pytest.raises(ConflictError):
        client.fine_tuning.jobs.resume(created.id)


def test_a_bad_hyperparameter_is_named(training_file: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        client.fine_tuning.jobs.create(
            model=BASE,
            training_file=training_file,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}},
        )
    assert raised.value.param == "method.supervised.hyperparameters.n_epochs"


def test_a_job_that_is_not_there_raises_not_found() -> None:
    with pytest.raises(NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-none")


def test_models_are_listed_and_retrieved_by_name(job: Any) -> None:
    assert {BASE, job.fine_tuned_model} <= {model.id for model in client.models.list()}
    model = client.models.retrieve(job.fine_tuned_model)
    assert (model.object, model.id) == ("model", job.fine_tuned_model)
    assert model.created > 0


def test_a_string_check_grader_is_validated_and_run() -> None:
    grader: Any = {
        "type": "string_check",
        "name": "soup",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
        "operation": "eq",
    }
    validated = client.fine_tuning.alpha.graders.validate(grader=grader)
    assert validated.grader is not None
    done = client.fine_tuning.alpha.graders.run(
        grader=grader, model_sample="Leek soup.", item={"answer": "Leek soup."}
    )
    assert done.reward == 1.0
