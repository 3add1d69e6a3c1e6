"""A dry run: what it says, that it refuses what a job would be refused for, and that it keeps nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from sqlalchemy import func, select
from tokenizers import Tokenizer

from app.core.database import Database
from app.core.idempotency import Creation
from app.datasets.chat_template import ChatTemplate
from app.fine_tuning.models import FineTuningJob, TrainingSpeed, Worker
from app.fine_tuning.packing import Limits
from app.fine_tuning.preflight.inspection import Subject, inspect
from tests.support.jobs import create, upload
from tests.support.service import BASE_MODEL
from tests.support.training_files import chat_line, training_bytes

pytestmark = pytest.mark.one_database


def dry_run(client: OpenAI, **parameters: Any) -> dict[str, Any]:
    body = parameters.pop("extra_body", {}) | {"dry_run": True}
    return create(client, extra_body=body, **parameters).to_dict()


@pytest.fixture
def tokenizer(base_models_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(str(base_models_dir / BASE_MODEL / "tokenizer.json"))


def test_it_says_what_would_happen_and_keeps_nothing(
    client: OpenAI, database: Database, tokenizer: Tokenizer
) -> None:
    file = upload(client, training_bytes(30))
    found = dry_run(
        client,
        training_file=file,
        hyperparameters={"n_epochs": 2, "batch_size": 4},
        extra_headers={"Idempotency-Key": "only-asking"},
    )
    assert (found["object"], found["ready"], found["model"]) == (
        "fine_tuning.job.preflight",
        True,
        BASE_MODEL,
    )
    assert (found["hyperparameters"]["n_epochs"], found["hyperparameters"]["lora_rank"]) == (2, 16)
    assert (found["steps_per_epoch"], found["steps"], found["examples"]) == (8, 16, 30)
    texts = [
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\nWhat is soup number {n}?<|im_end|>\n"
        f"<|im_start|>assistant\nSoup {n}.<|im_end|>\n"
        for n in range(30)
    ]
    lengths = sorted(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
    assert found["tokens_per_epoch"] == sum(lengths)
    assert (found["lengths"]["max"], found["lengths"]["limit"]) == (lengths[-1], 2048)
    answers = [len(tokenizer.encode(f"Soup {n}.<|im_end|>", add_special_tokens=False).ids) for n in range(30)]
    assert found["target_tokens_per_epoch"] == sum(answers)
    assert (found["refused"], found["without_target"], found["overlap"], found["sample"]) == (
        {"total": 0, "listed": []},
        {"total": 0, "listed": []},
        None,
        None,
    )
    assert found["layout"] == "packed"
    assert found["layout_reason"] == "the base model mixes tokens by causal attention alone"
    assert 0 < found["shared_share"] < 1
    assert 0 <= found["padding_share"] < 0.5
    assert [(example["line"], example["text"]) for example in found["rendered"]] == [
        (1, texts[0]),
        (2, texts[1]),
        (3, texts[2]),
    ]
    marked = [
        example["text"][start:end] for example in found["rendered"] for start, end in example["targets"]
    ]
    assert marked == [f"Soup {n}.<|im_end|>" for n in range(3)]
    assert found["time"]["basis"]["kind"] == "default"
    with database.reader() as session:
        assert session.scalar(select(func.count()).select_from(FineTuningJob)) == 0
        kinds = session.scalars(select(Creation.resource_id)).all()
        assert kinds == [file], "only the upload"


def test_what_a_job_is_refused_for_it_is_refused_for(client: OpenAI) -> None:
    few, good = upload(client, training_bytes(9)), upload(client)
    cases: list[dict[str, Any]] = [
        {"model": "gpt-9"},
        {"training_file": "file-none"},
        {"validation_file": "file-none"},
        {"training_file": few},
        {"training_file": upload(client, purpose="user_data")},
        {"method": {"type": "reinforcement"}},
        {"hyperparameters": {"n_epochs": 51}},
        {"extra_body": {"lora_rank": 64}},
        {"extra_body": {"max_length": 4096}},
        {"suffix": "?"},
    ]
    for case in cases:
        parameters = {"training_file": good} | case
        refusals: list[tuple[int, str | None, str | None, str]] = []
        for ask in (create, dry_run):
            with pytest.raises(openai.APIStatusError) as refused:
                ask(client, **parameters)
            error = refused.value
            refusals.append((error.status_code, error.code, error.param, error.message))
        assert refusals[0] == refusals[1], case
        assert 400 <= refusals[0][0] < 500


def test_another_projects_file_is_not_there(client: OpenAI, other_client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        dry_run(other_client, training_file=upload(client))


@pytest.mark.usefixtures("own_template")
def test_special_tokens_and_refused_examples_are_named_by_line(client: OpenAI) -> None:
    hostile = chat_line("Say <|im_end|> twice: <|im_end|>", "No.")
    tools = json.dumps(json.loads(chat_line()) | {"tools": [{"name": "stock"}]})
    content = training_bytes(10) + f"{hostile}\n\n{tools}\n".encode()
    found = dry_run(client, training_file=upload(client, content))
    assert not found["ready"]
    assert found["special_tokens"]["total"] == 2
    assert found["special_tokens"]["listed"][0] | {"message": ""} == {
        "file": "training_file",
        "line": 11,
        "pointer": "/messages/0/content",
        "code": "special_token",
        "message": "",
    }
    assert "<|im_end|>" in found["special_tokens"]["listed"][0]["message"]
    assert [(one["line"], one["code"]) for one in found["refused"]["listed"]] == [(13, "tools_not_supported")]
    assert found["tokens_per_epoch"] > 0


def test_examples_that_are_learnt_and_judged_by_are_counted(client: OpenAI) -> None:
    training = training_bytes(12)
    respaced = chat_line("What is soup number 3?", "Soup 3.").replace('": ', '" :  ')
    judged = [respaced, chat_line("what is  SOUP number 5?", "soup 5."), chat_line("Other?", "Yes.")]
    validation = upload(client, "\n".join(judged).encode())
    found = dry_run(client, training_file=upload(client, training), validation_file=validation)
    assert found["validation_examples"] == 3
    assert found["overlap"] == {
        "exact": 1,
        "normalised": 1,
        "listed": [
            {"training_line": 4, "validation_line": 1, "kind": "exact"},
            {"training_line": 6, "validation_line": 2, "kind": "normalised"},
        ],
    }


def test_estimates_follow_what_earlier_jobs_took(client: OpenAI, database: Database) -> None:
    file = upload(client, training_bytes(200))
    job = create(client, training_file=file)
    device = "CPU, 96 cores"
    with database.writer() as session:
        session.add(
            Worker(
                id="worker_1",
                hostname="h",
                pid=1,
                device=device,
                version="0.1.0",
                started_at=time.time(),
                heartbeat_at=time.time() + 3600,
                device_memory_bytes=2**28,
            )
        )
    guess = dry_run(client, training_file=file)
    assert (guess["time"]["basis"]["kind"], guess["time"]["basis"]["device"]) == ("default", device)
    assert guess["memory"]["device_bytes"] == 2**28
    assert guess["memory"]["fits"] is False

    def measured(seconds: float) -> dict[str, Any]:
        with database.writer() as session:
            session.merge(
                TrainingSpeed(
                    job_id=job.id,
                    base_model=BASE_MODEL,
                    device=device,
                    worker_id="worker_0",
                    lora_rank=16,
                    value_bytes=2,
                    tokens=10_000,
                    seconds=seconds,
                    startup_seconds=8.0,
                    training={"steps": 10, "pieces": 10, "tokens": 8000, "targets": 900, "scores": 80_000},
                    evaluation={},
                    largest={"tokens": 800, "rows": 800, "targets": 90},
                    resident_memory_bytes=2**30,
                    peak_memory_bytes=2**32,
                )
            )
        return dry_run(client, training_file=file)

    slow, fast = measured(100.0), measured(50.0)
    assert slow["time"]["basis"] | {"measured_at": 0} == {
        "kind": "measured",
        "device": device,
        "jobs": 1,
        "tokens_per_second": 100.0,
        "measured_at": 0,
    }
    assert slow["time"]["startup_seconds"] == 8.0, "that worker is gone: another loads the base first"
    working = [found["time"]["seconds"] - 8.0 for found in (slow, fast)]
    assert working[0] == pytest.approx(2 * working[1], rel=0.02)
    assert 2**31 < slow["memory"]["base_model_bytes"] < 2**32, "with what a job took beyond its parts"
    parts = [slow["memory"][name] for name in ("base_model_bytes", "adapter_bytes", "activation_bytes")]
    assert slow["memory"]["peak_bytes"] >= sum(parts)
    assert slow["memory"]["adapter_bytes"] == 16 * 4_884_480
    twice = dry_run(
        client, training_file=file, hyperparameters={"n_epochs": 2 * slow["hyperparameters"]["n_epochs"]}
    )
    assert twice["time"]["seconds"] - 8.0 == pytest.approx(2 * working[1], rel=0.05)


def test_several_gpus_share_the_base_and_the_time(client: OpenAI, database: Database) -> None:
    file = upload(client, training_bytes(200))
    with database.writer() as session:
        session.add(
            Worker(
                hostname="h",
                pid=1,
                device="NVIDIA H100",
                gpus=4,
                version="0.1.0",
                started_at=time.time(),
                heartbeat_at=time.time() + 3600,
            )
        )
    one, four = (dry_run(client, training_file=file, extra_body={"gpus": gpus}) for gpus in (1, 4))
    assert four["memory"]["base_model_bytes"] == pytest.approx(one["memory"]["base_model_bytes"] / 4, abs=4)
    assert four["memory"]["adapter_bytes"] == one["memory"]["adapter_bytes"], "each has it"
    working = [found["time"]["seconds"] - found["time"]["startup_seconds"] for found in (one, four)]
    assert working[1] == pytest.approx(working[0] / 4, abs=0.1)


def test_of_many_examples_a_sample_is_looked_at(tmp_path: Path, base_models_dir: Path) -> None:
    path = tmp_path / "many.jsonl"
    lines = [chat_line(f"What is soup {n}?", "Leek. " * (1 + n % 9)) for n in range(400)]
    lines[77] = chat_line("Recite.", "Leek. " * 300)
    path.write_text("\n".join(lines))

    def look(sample: int, seed: int = 1):
        return inspect(
            Subject(
                base_model_dir=base_models_dir / BASE_MODEL,
                training=path,
                validation=None,
                held_out=frozenset(),
                examples=400,
                validation_examples=0,
                method="supervised",
                limits=Limits.of_device(is_gpu=False, vocabulary=49152),
                n_epochs=1,
                batch_size=8,
                max_length=2048,
                checkpoint_steps=None,
                seed=seed,
                sample=sample,
            )
        )

    whole, part = look(400), look(120)
    assert (whole.sampled, part.sampled) == (400, 120)
    assert part.tokens_per_epoch == look(120).tokens_per_epoch
    assert part.tokens_per_epoch == pytest.approx(whole.tokens_per_epoch, rel=0.1)
    assert whole.work is not None and part.work is not None
    assert part.work.training.tokens == pytest.approx(whole.work.training.tokens, rel=0.15)
    longest = max(each.targets for each in whole.work.micro_batches)
    assert max(each.targets for each in part.work.micro_batches) >= 300, "the longest line counts for memory"
    assert longest >= 300


def test_target_marks_are_the_masks(base_models_dir: Path) -> None:
    from app.datasets.formats import parse_line

    template = ChatTemplate.load(base_models_dir / BASE_MODEL)
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Un.", "weight": 0},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Deux."},
    ]
    for line, expected in (
        (json.dumps({"messages": turns}), ["Deux.<|im_end|>"]),
        (json.dumps({"prompt": "Two: ", "completion": "deux"}), ["deux<|im_end|>"]),
    ):
        example = parse_line(line.encode())
        [(text, spans)] = template.render_with_targets(example)
        assert [text[start:end] for start, end in spans] == expected
        assert any(template.tokenize(example)[0].target_mask)


def test_the_answer_is_one_of_two_in_the_specification(http: httpx2.Client) -> None:
    answers = http.get("/openapi.json").json()["paths"]["/v1/fine_tuning/jobs"]["post"]["responses"]["200"]
    shown = answers["content"]["application/json"]["schema"]["anyOf"]
    assert [one["$ref"].rpartition("/")[2] for one in shown] == ["JobObject", "JobPreflight"]
