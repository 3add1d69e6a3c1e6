"""DPO and continued tuning, from the request to the served model; in the end on the demo's base model."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from safetensors.torch import load_file
from safetensors.torch import save_file as save

from app.core.database import Database
from app.core.settings import Settings
from app.storage import open_storage
from tests.support.examples import Lines, chat, preference
from tests.support.reference_engine import Reference, log, running
from tests.support.service import BASE_MODEL
from tests.support.tiny_model import TINY
from tests.support.trainer import Child, with_
from tests.support.training_files import training_bytes
from tests.support.worker import check_record, create, ended, run_worker, weights
from workers.training.protocol import Failed, Finished, Step, TrainingSpec


@pytest.fixture
def reference(settings: Settings, database: Database, base_model_dir: Path) -> Reference:
    return Reference(base_model_dir, database, open_storage(settings))


def metrics(client: OpenAI, job_id: str) -> list[dict[str, Any]]:
    events = client.fine_tuning.jobs.list_events(job_id, limit=1000)
    return [event.data for event in events if event.type == "metrics"][::-1]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_dpo_job_and_what_is_known_of_it(
    client: OpenAI, settings: Settings, reference: Reference, tmp_path: Path
) -> None:
    job = create(client, method="dpo", hyperparameters={"learning_rate_multiplier": 100})
    with running(reference), run_worker(settings, tmp_path):
        done = ended(client, job.id)
    assert (done.status, done.error) == ("succeeded", None)
    assert any(line.startswith("Served as trained: ") for line in log(client, job.id))
    losses = [float(loss) for loss in check_record(client, done)]
    assert losses[0] == pytest.approx(math.log(2), abs=0.02)
    assert losses[-1] < losses[0]

    steps = metrics(client, job.id)
    assert steps[-1]["train_reward_margin"] > abs(steps[0]["train_reward_margin"])
    assert steps[-1]["train_reward_accuracy"] == 1.0
    last = next(line for line in log(client, job.id)[::-1] if line.startswith("Step 12/12"))
    assert f"reward margin={steps[-1]['train_reward_margin']:.4f}" in last
    newest = client.fine_tuning.jobs.checkpoints.list(job.id).data[0].metrics
    assert newest.to_dict() == {**newest.to_dict(), "train_reward_accuracy": 1.0, "step": 12.0}
    rows = list(csv.DictReader(client.files.content(done.result_files[0]).text.splitlines()))
    assert [float(row["train_accuracy"]) for row in rows] == [
        step["train_mean_token_accuracy"] for step in steps
    ]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_job_goes_on_where_its_parent_ended(
    client: OpenAI,
    http: httpx2.Client,
    settings: Settings,
    database: Database,
    reference: Reference,
    tmp_path: Path,
) -> None:
    validation = client.files.create(file=("valid.jsonl", training_bytes(24)), purpose="fine-tune")
    whole = {"n_epochs": 1, "batch_size": 24}
    with running(reference), run_worker(settings, tmp_path):
        parent = ended(client, create(client, validation_file=validation.id, extra_body={"lora_rank": 4}).id)
        checkpoint = f"{parent.fine_tuned_model}:ckpt-step-12"
        child = create(client, model=checkpoint, hyperparameters=whole)
        client.models.delete(checkpoint)
        client.models.delete(parent.fine_tuned_model)
        child = ended(client, child.id)
    assert (child.status, child.error) == ("succeeded", None)
    assert any(line.startswith("Served as trained: ") for line in log(client, child.id))

    evaluated = metrics(client, parent.id)[-1]["full_valid_loss"]
    [first] = metrics(client, child.id)
    assert first["train_loss"] == pytest.approx(evaluated, rel=1e-2)
    assert child.model == checkpoint
    assert child.fine_tuned_model == f"ft:{TINY}:default::{child.id.removeprefix('ftjob-')}"
    record = http.get(f"/v1/models/{child.fine_tuned_model}").json()
    assert record["lineage"] == [TINY, checkpoint, child.fine_tuned_model]
    before, after = (
        weights(database, settings, name) for name in (parent.fine_tuned_model, child.fine_tuned_model)
    )
    assert before.keys() == after.keys()
    assert all(before[name].shape == after[name].shape for name in before)
    assert any((before[name] != after[name]).any() for name in before)


def test_a_damaged_parent_fails_the_job(child: Child, spec: TrainingSpec, tmp_path: Path) -> None:
    trained = child.train(with_(spec))
    assert isinstance(trained[-1], Finished)
    folder = Path(trained[-1].path)
    goes_on = with_(spec, parent=str(folder), lora_rank=4)
    assert isinstance(child.train(goes_on)[-1], Finished)

    content = bytearray((folder / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(content)
    [failed] = child.train(goes_on)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.param) == ("model_damaged", "model")
    assert isinstance(child.train(with_(spec))[-1], Finished)


def test_other_ranks_modules_and_scales_are_taken_over(
    child: Child, spec: TrainingSpec, tmp_path: Path
) -> None:
    """As an adapter from elsewhere may have them."""
    [*_, trained] = child.train(with_(spec))
    assert isinstance(trained, Finished)
    tensors = load_file(Path(trained.path) / "adapter_model.safetensors")
    some = {name: tensor for name, tensor in tensors.items() if "layers.1.self_attn" in name}
    folder = tmp_path / "parent"
    folder.mkdir()
    names = sorted({name.split(".lora_")[0].removeprefix("base_model.model.") for name in some})
    config = json.loads((Path(trained.path) / "adapter_config.json").read_text())
    config |= {"target_modules": names, "use_rslora": True, "lora_alpha": 3.5}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save(some, folder / "adapter_model.safetensors")

    [*_, finished] = child.train(with_(spec, parent=str(folder), learning_rate=1e-6))
    assert isinstance(finished, Finished)
    after = load_file(Path(finished.path) / "adapter_model.safetensors")
    assert after.keys() == some.keys()
    assert all((after[name] - some[name]).abs().max() < 1e-3 for name in some)
    written = json.loads((Path(finished.path) / "adapter_config.json").read_text())
    taken_over = ("r", "lora_alpha", "use_rslora", "target_modules")
    assert {name: written[name] for name in taken_over} == {name: config[name] for name in taken_over}


# The real model


def steps_of(said: list[Any]) -> list[Any]:
    assert isinstance(said[-1], Finished), said[-1]
    return [message.metrics for message in said if isinstance(message, Step)]


def test_both_on_the_real_model(
    child: Child, spec: TrainingSpec, jsonl: Lines, base_models_dir: Path
) -> None:
    system = "Answer in the voice of a ship's cook."
    things = ["soup", "bread", "fish", "rice", "stew", "tea", "beans", "cake"]
    chats = str(
        jsonl([chat(f"Is the {each} done?", f"Aye, the {each} be done!", system=system) for each in things])
    )
    pairs = str(
        jsonl(
            [
                preference(
                    f"Is the {each} done?",
                    f"Aye, the {each} be done!",
                    f"Yes, the {each} is ready.",
                    system=system,
                )
                for each in things
            ],
            "pairs.jsonl",
        )
    )
    real = with_(
        spec,
        base_model=BASE_MODEL,
        base_model_dir=str(base_models_dir / BASE_MODEL),
        training_file=chats,
        validation_file=chats,
        learning_rate=1e-3,
        lora_rank=16,
        lora_alpha=32,
    )
    said = child.train(real)
    parent = steps_of(said)
    goes_on = with_(real, parent=said[-1].path, n_epochs=1, batch_size=len(things), validation_file=None)
    [first] = steps_of(child.train(goes_on))
    assert parent[-1].full_valid_loss < 0.8 * parent[0].train_loss
    assert first.train_loss == pytest.approx(parent[-1].full_valid_loss, rel=0.02)

    dpo = with_(
        real,
        method="dpo",
        beta=0.1,
        training_file=pairs,
        validation_file=pairs,
        learning_rate=3e-4,
        n_epochs=3,
    )
    preferred = steps_of(child.train(dpo))
    assert preferred[0].train_loss == pytest.approx(math.log(2), abs=0.02)
    full = [step for step in preferred if step.full_valid_loss is not None]
    losses, margins = (
        [step.full_valid_loss for step in full],
        [step.full_valid_reward_margin for step in full],
    )
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < math.log(2) / 2
    assert margins == sorted(margins)
    assert full[-1].full_valid_reward_accuracy == 1.0
