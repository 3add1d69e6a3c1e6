"""`/v1/fine_tuning/jobs` through the official client, on both databases, without a worker."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from app.core.database import Database
from app.core.settings import Settings
from app.files.models import File
from app.fine_tuning.models import FineTuningJob
from tests.support.jobs import create, upload
from tests.support.service import BASE_MODEL
from tests.support.training_files import chat_line, training_bytes


def test_a_job_is_queued_with_numbers_for_auto(client: OpenAI) -> None:
    file = upload(client, training_bytes(300))
    job = create(client, training_file=file, suffix="soup", seed=7, metadata={"team": "kitchen"})
    assert job.id.startswith("ftjob-")
    assert (job.object, job.status, job.model, job.training_file) == (
        "fine_tuning.job",
        "queued",
        BASE_MODEL,
        file,
    )
    assert (job.seed, job.metadata, job.validation_file, job.result_files) == (
        7,
        {"team": "kitchen"},
        None,
        [],
    )
    assert (job.fine_tuned_model, job.finished_at, job.error, job.trained_tokens) == (None, None, None, None)
    hyperparameters = job.hyperparameters
    assert (hyperparameters.n_epochs, hyperparameters.batch_size) == (3, 8)
    assert hyperparameters.learning_rate_multiplier == 1.0
    assert hyperparameters.model_extra is not None
    assert hyperparameters.model_extra["lora_rank"] == 16
    assert hyperparameters.model_extra["learning_rate"] == pytest.approx(1.32e-3, rel=0.01)
    assert job.method is not None
    assert job.method.type == "supervised"
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    events = client.fine_tuning.jobs.list_events(job.id).data
    assert [(event.level, event.type, event.message) for event in events] == [
        ("info", "message", f"Created fine-tuning job: {job.id}")
    ]
    assert client.fine_tuning.jobs.checkpoints.list(job.id).data == []


def test_checkpoints_by_steps(client: OpenAI) -> None:
    job = create(client, extra_body={"checkpoint_steps": 1})
    assert job.hyperparameters.model_extra is not None
    assert job.hyperparameters.model_extra["checkpoint_steps"] == 1
    assert create(client).hyperparameters.model_extra["checkpoint_steps"] is None
    many = client.files.create(file=("many.jsonl", training_bytes(300)), purpose="fine-tune").id
    with pytest.raises(openai.BadRequestError) as refused:
        create(
            client,
            training_file=many,
            extra_body={"checkpoint_steps": 1},
            hyperparameters={"n_epochs": 3, "batch_size": 1},
        )
    assert refused.value.param == "checkpoint_steps"
    assert "900 steps" in str(refused.value) and "set 5 or more" in str(refused.value)


def test_hyperparameters_may_stand_in_three_places(client: OpenAI) -> None:
    job = create(
        client,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto", "lora_alpha": 8}},
        },
        hyperparameters={"learning_rate_multiplier": 2},
        extra_body={"lora_rank": 4, "max_length": 512},
    )
    assert job.method is not None
    assert job.method.supervised is not None
    assert job.method.supervised.hyperparameters is not None
    numbers = job.method.supervised.hyperparameters.to_dict()
    assert numbers["n_epochs"] == 2
    assert (numbers["lora_rank"], numbers["lora_alpha"], numbers["max_length"]) == (4, 8, 512)
    assert numbers["learning_rate_multiplier"] == 2
    assert numbers["learning_rate"] == pytest.approx(2 * 1.32e-3, rel=0.01)
    with pytest.raises(openai.BadRequestError) as caught:
        create(
            client,
            hyperparameters={"n_epochs": 3},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        )
    assert caught.value.param == "hyperparameters.n_epochs"


@pytest.mark.parametrize(
    ("parameters", "status", "code", "param"),
    [
        ({"model": "gpt-9"}, 404, "model_not_found", "model"),
        ({"model": "../../etc/passwd"}, 404, "model_not_found", "model"),
        ({"training_file": "file-none"}, 404, "file_not_found", "training_file"),
        ({"validation_file": "file-none"}, 404, "file_not_found", "validation_file"),
        ({"method": {"type": "dpo"}}, 400, "wrong_format", "training_file"),
        (
            {"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}},
            400,
            "unsupported_method",
            "method.type",
        ),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]},
            400,
            "unsupported_parameter",
            "integrations",
        ),
        ({"extra_body": {"lora_rank": 64}}, 400, "invalid_value", "lora_rank"),
        ({"extra_body": {"max_length": 4096}}, 400, "invalid_value", "max_length"),
        ({"extra_body": {"target_modules": "experts"}}, 400, "invalid_value", "target_modules"),
        ({"extra_body": {"quantization": "fp4"}}, 400, "invalid_value", "quantization"),
        ({"extra_body": {"target_modules": []}}, 400, "invalid_value", "target_modules"),
        ({"extra_body": {"target_modules": ["q_proj", "lm_head"]}}, 400, "invalid_value", "target_modules"),
        (
            {"extra_body": {"learning_rate": 1e-3, "hyperparameters": {"learning_rate_multiplier": 1}}},
            400,
            "invalid_value",
            "learning_rate",
        ),
        ({"hyperparameters": {"n_epochs": 0}}, 400, "invalid_value", "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": "many"}}, 400, "invalid_value", "hyperparameters.n_epochs"),
        ({"metadata": {str(n): "x" for n in range(17)}}, 400, "invalid_value", "metadata"),
        ({"metadata": {"k" * 65: "x"}}, 400, "invalid_value", None),
        ({"metadata": {"k": "x" * 513}}, 400, "invalid_value", "metadata.k"),
        ({"suffix": "x" * 65}, 400, "invalid_value", "suffix"),
    ],
)
def test_wrong_parameters(
    client: OpenAI, parameters: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        create(client, **parameters)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert param is None or caught.value.param == param
    assert list(client.fine_tuning.jobs.list()) == []


def test_modules_that_the_base_lacks_are_refused_with_those_it_has(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, method=supervised(target_modules=["q_proj", "c_attn", "layers.99.mlp.up_proj"]))
    assert refused.value.message.endswith(
        "'smollm2-135m-instruct' has no c_attn, layers.99.mlp.up_proj; "
        "it has: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj."
    )


@pytest.mark.parametrize("wanted", ["auto", "all-linear", "attention", "mlp", ["q_proj", "0.mlp.up_proj"]])
def test_target_modules_are_kept_as_they_are_asked_for(
    client: OpenAI, database: Database, wanted: str | list[str]
) -> None:
    job = create(client, method=supervised(target_modules=wanted))
    resolved = "all-linear" if wanted == "auto" else wanted
    assert job.hyperparameters.to_dict()["target_modules"] == resolved
    with database.reader() as session:
        version = session.get_one(FineTuningJob, job.id).spec_version
    assert version == (1 if resolved == "all-linear" else 3), "no older worker trains other modules"


def test_a_quantized_job_says_so_and_is_left_to_workers_that_can(client: OpenAI, database: Database) -> None:
    job = create(client, method=supervised(quantization="nf4"))
    assert job.hyperparameters.to_dict()["quantization"] == "nf4"
    events = client.fine_tuning.jobs.list_events(job.id).data
    assert any("stored in NF4 while it is trained" in event.message for event in events)
    plain = create(client)
    assert plain.hyperparameters.to_dict()["quantization"] == "none"
    with database.reader() as session:
        versions = [session.get_one(FineTuningJob, each.id).spec_version for each in (job, plain)]
    assert versions == [3, 1]


def supervised(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


@pytest.mark.usefixtures("own_template")
def test_files_that_cannot_be_trained_on(client: OpenAI) -> None:
    def refused(code: str, param: str = "training_file", **parameters: Any) -> str:
        with pytest.raises(openai.BadRequestError) as caught:
            create(client, **parameters)
        assert (caught.value.code, caught.value.param) == (code, param)
        return str(caught.value)

    assert "9 examples" in refused("too_few_examples", training_file=upload(client, training_bytes(9)))
    refused("invalid_file_purpose", training_file=upload(client, purpose="user_data"))

    long_answer = chat_line("Recite.", "leek " * 3000)
    too_long = upload(client, training_bytes(11) + long_answer.encode())
    message = refused("example_too_long", training_file=too_long)
    assert "Line 12 " in message
    assert "2,048" in message
    refused("example_too_long", "validation_file", validation_file=too_long)
    turns = '[{"role": "user", "content": "%s"}, {"role": "assistant", "content": "x"}]'
    tools = f'{{"messages": {turns}, "tools": [{{"name": "stock"}}]}}'
    refused(
        "tools_not_supported",
        training_file=upload(client, training_bytes(11) + (tools % ("x" * 3000)).encode()),
    )


@pytest.mark.usefixtures("own_template")
def test_what_the_base_cannot_learn_from_stops_a_job_and_not_a_dry_run(client: OpenAI) -> None:
    tools = json.dumps(json.loads(chat_line()) | {"tools": [{"name": "stock"}]})
    long_answer = chat_line("Recite.", "leek " * 3000)
    for line, code in ((tools, "tools_not_supported"), (long_answer, "example_too_long")):
        file = upload(client, training_bytes(11) + line.encode())
        with pytest.raises(openai.BadRequestError) as caught:
            create(client, training_file=file)
        assert (caught.value.code, caught.value.param) == (code, "training_file")
        assert "Line 12 " in str(caught.value)
        dry: Any = create(client, training_file=file, extra_body={"dry_run": True}).to_dict()
        assert not dry["ready"]
        assert [(one["line"], one["code"]) for one in dry["refused"]["listed"]] == [(12, code)]
        assert dry["examples"] == 12


def test_many_bytes_but_few_tokens_are_fine(client: OpenAI) -> None:
    spaced = chat_line("Recite.", "a" + " " * 4000 + "b")
    assert (
        create(client, training_file=upload(client, training_bytes(11) + spaced.encode())).status == "queued"
    )


def test_a_name_of_another_service_stands_for_a_base_here(client: OpenAI) -> None:
    job = create(client, model="gpt-4o-mini-2024-07-18")
    assert job.model == BASE_MODEL
    newest = client.fine_tuning.jobs.list_events(job.id).data[0]
    assert newest.level == "warn"
    assert BASE_MODEL in newest.message


def test_lists_are_paged_and_filtered(client: OpenAI, http: httpx2.Client) -> None:
    file = upload(client)
    ids = [create(client, training_file=file, metadata={"n": str(n % 2)}).id for n in range(5)]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == list(reversed(ids))
    for pairs in ({"\0": "a"}, {f"k{n}": "1" for n in range(2000)}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.fine_tuning.jobs.list(metadata=pairs)
        assert (caught.value.code, caught.value.param) == ("invalid_value", "metadata")
    odd = client.fine_tuning.jobs.list(metadata={"n": "1"})
    assert [job.id for job in odd] == [ids[3], ids[1]]
    page = http.get("/v1/fine_tuning/jobs?limit=2").json()
    assert (page["object"], page["has_more"], page["last_id"]) == ("list", True, ids[3])


def test_a_waiting_job_can_be_cancelled_once_and_again(client: OpenAI) -> None:
    job = create(client)
    for _ in range(2):
        cancelled = client.fine_tuning.jobs.cancel(job.id)
        assert cancelled.status == "cancelled"
        assert cancelled.finished_at is not None
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert messages.count("The job was cancelled.") == 1


def test_another_projects_job_is_not_there(client: OpenAI, other_client: OpenAI) -> None:
    job = create(client)
    jobs = other_client.fine_tuning.jobs
    for attempt in (jobs.retrieve, jobs.cancel, jobs.list_events, jobs.checkpoints.list):
        with pytest.raises(openai.NotFoundError):
            attempt(job.id)
    assert list(jobs.list()) == []
    with pytest.raises(openai.NotFoundError):
        create(other_client, training_file=job.training_file)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"


def test_a_deleted_file_does_not_hurt_the_job(client: OpenAI) -> None:
    job = create(client)
    client.files.delete(job.training_file)
    assert client.fine_tuning.jobs.retrieve(job.id).training_file == job.training_file


def test_a_file_that_the_storage_has_lost_is_no_fault_of_the_request(
    client: OpenAI, database: Database, settings: Settings
) -> None:
    long = "".join(chat_line(f"Soup {n}? " + "leek " * 1000) + "\n" for n in range(12)).encode()
    file = client.files.create(file=("train.jsonl", long), purpose="fine-tune")
    assert client.files.wait_for_processing(file.id, poll_interval=0.05).status == "processed"
    with database.reader() as session:
        stored = session.get_one(File, file.id).storage_key
    (settings.storage_root / stored).unlink()
    with pytest.raises(openai.InternalServerError) as caught:
        client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=file.id)
    assert (caught.value.status_code, caught.value.code) == (503, "storage_unavailable")
    assert client.fine_tuning.jobs.list().data == []
