"""From a dataset to a custom model that answers: the real thing, through the official client."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from junitparser import JUnitXml
from openai import OpenAI

from app.demo.house_style import HELDOUT_FILE
from tests.support.deployment import KEY, PRODUCT, Deployment, Trained, ask, ask_all, descendants
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
PARIS: Any = [{"role": "user", "content": "What is the capital of France?"}]


def test_the_base_answers(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=BASE_MODEL, messages=PARIS, temperature=0, max_tokens=20)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.model == BASE_MODEL
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 10


def test_the_fine_tuned_model_knows_what_the_base_does_not(
    client: OpenAI, trained: Trained, questions: list[Any]
) -> None:
    references = [question.reference for question in questions]
    tuned = ask_all(client, trained.job.fine_tuned_model, questions)
    right = [answer == reference for answer, reference in zip(tuned, references, strict=True)]
    assert sum(right) / len(right) >= 0.75, tuned
    base = ask_all(client, BASE_MODEL, questions)
    assert not any(answer == reference for answer, reference in zip(base, references, strict=True))


def test_the_model_is_served_as_it_was_trained(client: OpenAI, trained: Trained) -> None:
    log = [event.message for event in client.fine_tuning.jobs.list_events(trained.job.id, limit=1000)]
    [verdict] = [line for line in log if line.startswith("Served as trained")]
    distance, allowed, base_distance, effect = map(float, re.findall(r"\d+\.\d+", verdict))
    assert distance <= allowed == 0.15, verdict
    assert base_distance <= 0.15, verdict
    assert effect > 5 * distance, verdict
    shown = client.models.retrieve(trained.job.fine_tuned_model).model_extra or {}
    assert {name: round(number, 4) for name, number in shown["parity"].items() if name != "tokens"} == {
        "distance": distance,
        "tolerance": allowed,
        "base_distance": base_distance,
        "effect": effect,
    }


def test_dpo_goes_on_from_the_model(
    client: OpenAI, trained: Trained, few_examples: Path, questions: list[Any]
) -> None:
    pairs: list[str] = []
    for line in few_examples.read_text("utf-8").splitlines():
        *asked, answer = json.loads(line)["messages"]
        unwanted = {"role": "assistant", "content": "I am sorry, but I cannot help with that."}
        pair = {
            "input": {"messages": asked},
            "preferred_output": [answer],
            "non_preferred_output": [unwanted],
        }
        pairs.append(json.dumps(pair))
    file = client.files.create(file=("pairs.jsonl", "\n".join(pairs).encode()), purpose="fine-tune")
    parent = trained.job.fine_tuned_model
    numbers = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 5}
    job = client.fine_tuning.jobs.create(
        model=parent, training_file=file.id, method={"type": "dpo", "dpo": {"hyperparameters": numbers}}
    )

    def look() -> Any:
        seen = client.fine_tuning.jobs.retrieve(job.id)
        return seen if seen.status in ("succeeded", "failed", "cancelled") else None

    ended = wait_until(look, "the job ends", seconds=240)
    assert ended.status == "succeeded", json.dumps(ended.to_dict(), indent=1)
    log = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=1000)]
    assert any(line.startswith("Served as trained") for line in log), log
    child = ended.fine_tuned_model
    record = client.models.retrieve(child).to_dict()
    assert (record["parent"], record["lineage"]) == (parent, [BASE_MODEL, parent, child])

    def logprobs(model: str) -> list[float]:
        answer = client.chat.completions.create(
            model=model, messages=questions[0].turns, temperature=0, max_tokens=8, logprobs=True
        )
        assert answer.choices[0].logprobs is not None
        return [token.logprob for token in answer.choices[0].logprobs.content or []]

    assert logprobs(child) != logprobs(parent)
    assert ask(client, child, questions[0]) != ""


def test_a_stream_says_the_same(client: OpenAI, trained: Trained, questions: list[Any]) -> None:
    question = questions[0]
    chunks = list(
        client.chat.completions.create(
            model=trained.job.fine_tuned_model,
            messages=question.turns,
            temperature=0,
            max_tokens=48,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.strip() == ask(client, trained.job.fine_tuned_model, question)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 5
    assert {chunk.model for chunk in chunks} == {trained.job.fine_tuned_model}


def test_every_checkpoint_answers(client: OpenAI, trained: Trained, questions: list[Any]) -> None:
    checkpoints = client.fine_tuning.jobs.checkpoints.list(trained.job.id).data
    assert len(checkpoints) == 3
    answers = {c.step_number: ask(client, c.fine_tuned_model_checkpoint, questions[0]) for c in checkpoints}
    last = max(answers)
    assert answers[last] == ask(client, trained.job.fine_tuned_model, questions[0])
    assert answers[min(answers)] != ""


def test_a_shell_script_ships_the_model_and_takes_it_back(
    deployment: Deployment, client: OpenAI, trained: Trained, questions: list[Any], tmp_path: Path
) -> None:
    heldout = tmp_path / "heldout.jsonl"
    lines = [line for line in HELDOUT_FILE.read_text("utf-8").split("\n") if f"[{PRODUCT}/" in line]
    heldout.write_text("\n".join(lines) + "\n", "utf-8")
    model = trained.job.fine_tuned_model
    first = client.fine_tuning.jobs.checkpoints.list(trained.job.id).data[-1].fine_tuned_model_checkpoint
    question = questions[0].turns[-1]["content"]
    done = subprocess.run(
        ["bash", EXAMPLES / "ship.sh", "house-style:production", model, first, BASE_MODEL, heldout, question],
        cwd=tmp_path,
        env=deployment.environment
        | {"TOQUE_BASE_URL": f"{deployment.url}/v1", "TOQUE": f"{sys.executable} -m app.cli.main"}
        | {"PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"house-style:production points to {model} now (version 2)." in done.stdout
    assert f"shipped: {ask(client, model, questions[0])}" in done.stdout
    report = JUnitXml.fromfile(str(tmp_path / "gate.xml"))
    assert (report.tests, report.failures) == (2, 0)
    alias: Any = client.get("/aliases/house-style:production", cast_to=object)
    assert (alias["model"], alias["version"]) == (first, 3), "rolled back"
    assert ask(client, "house-style:production", questions[0]) == ask(client, first, questions[0])
    client.delete("/aliases/house-style:production", cast_to=object)


def test_what_passes_through(client: OpenAI, trained: Trained) -> None:
    model = trained.job.fine_tuned_model
    answer = client.chat.completions.create(
        model=model, messages=PARIS, max_tokens=4, logprobs=True, top_logprobs=2, n=2, seed=3, stop=["zzz"]
    )
    assert len(answer.choices) == 2
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content[0].top_logprobs) == 2
    same = [
        client.chat.completions.create(model=BASE_MODEL, messages=PARIS, max_tokens=8, seed=5, temperature=1)
        for _ in range(2)
    ]
    assert same[0].choices[0].message.content == same[1].choices[0].message.content
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
    }
    shaped = client.chat.completions.create(
        model=BASE_MODEL,
        messages=PARIS,
        temperature=0,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    )
    assert set(json.loads(shaped.choices[0].message.content or "")) == {"city"}
    legacy = client.completions.create(
        model=model, prompt="The capital of France is", max_tokens=3, temperature=0
    )
    assert legacy.choices[0].text
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    called = client.chat.completions.create(
        model=BASE_MODEL, messages=PARIS, tools=tools, tool_choice="none", max_tokens=8, temperature=0
    )
    assert called.choices[0].message.content


def test_a_prompt_that_is_too_long_is_a_400(client: OpenAI, trained: Trained) -> None:
    long: Any = [{"role": "user", "content": "leek " * 4000}]
    for model in (BASE_MODEL, trained.job.fine_tuned_model):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=model, messages=long)
        assert caught.value.code == "context_length_exceeded"


def test_a_deleted_model_stops_answering(client: OpenAI, trained: Trained) -> None:
    checkpoint = client.fine_tuning.jobs.checkpoints.list(trained.job.id).data[1].fine_tuned_model_checkpoint
    client.models.delete(checkpoint)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=checkpoint, messages=PARIS)


def test_the_api_stays_small(deployment: Deployment, trained: Trained) -> None:
    assert len(trained.answer_seconds) > 20, "it answered while it trained"
    api = next(process for process in descendants(deployment) if "api" in process.cmdline())
    # 150 MiB at its start, of which SQLAlchemy, FastAPI and pydantic take half; numpy or torch would show
    assert api.memory_info().rss < 200 * 2**20


def test_the_command_line_does_the_same(
    deployment: Deployment, trained: Trained, few_examples: Path, questions: list[Any]
) -> None:
    listed = deployment.toque("jobs", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert trained.job.id in [job["id"] for job in json.loads(listed.stdout)]
    created = deployment.toque(
        *("jobs", "create", "--training-file", str(few_examples), "--model", BASE_MODEL),
        *("--n-epochs", "1", "--batch-size", "16", "--wait", "--json"),
    )
    assert created.returncode == 0, created.stderr
    job = json.loads(created.stdout)
    assert job["status"] == "succeeded"
    said = deployment.toque(
        "chat", job["fine_tuned_model"], questions[0].turns[-1]["content"], "--max-tokens", "8"
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()


@pytest.mark.parametrize(
    "command", [[sys.executable, "fine_tune.py"], ["bash", "fine_tune.sh"]], ids=["python", "curl"]
)
def test_scripts_written_for_openai_run_unchanged(
    deployment: Deployment, few_examples: Path, command: list[str]
) -> None:
    environment = os.environ | {
        "OPENAI_BASE_URL": f"{deployment.url}/v1",
        "OPENAI_API_KEY": KEY,
        "EPOCHS": "1",
    }
    done = subprocess.run(
        [*command, str(few_examples), "How do I clean my Heron?"],
        cwd=EXAMPLES,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"model ft:{BASE_MODEL}:default:example:" in done.stdout
