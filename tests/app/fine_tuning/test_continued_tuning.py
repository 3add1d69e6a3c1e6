"""Jobs by DPO, and jobs that go on from a model, as they are asked for: over HTTP, on both databases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from app.core.database import Database
from app.core.settings import Settings
from app.files import service as files_service
from app.fine_tuning import publication, queue
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import FineTuningJob
from app.models.adapters.models import Adapter
from app.models.adapters.service import quarantine
from app.models.adapters.validation import Shapes, module_shapes
from app.orphans import find_orphans
from app.storage import open_storage
from app.storage.incoming import StoredFile
from tests.support.jobs import create, upload
from tests.support.peft_folder import RANK, send, tensors, write_adapter
from tests.support.service import BASE_MODEL


def preference_line(question: str, preferred: str = "Leek.", other: str = "It depends.", **given: Any) -> str:
    line = {
        "input": {"messages": [{"role": "user", "content": question}]} | given,
        "preferred_output": [{"role": "assistant", "content": preferred}],
        "non_preferred_output": [{"role": "assistant", "content": other}],
    }
    return json.dumps(line)


def preference_bytes(examples: int = 12) -> bytes:
    return "".join(preference_line(f"What is soup {n}?") + "\n" for n in range(examples)).encode()


@pytest.fixture(scope="session")
def base(base_models_dir: Path) -> Shapes:
    """The first layer's modules of the demo's base model."""
    shapes = module_shapes(base_models_dir / BASE_MODEL)
    return {name: shape for name, shape in shapes.items() if name.startswith("model.layers.0.")}


@pytest.fixture
def imported(http: httpx2.Client, base: Shapes, tmp_path: Path) -> str:
    """A model of rank 4 and alpha 8."""
    response = send(http, write_adapter(tmp_path / "adapter", tensors(base)))
    assert response.status_code == 200, response.text
    return response.json()["id"]


def numbers(job: Any) -> dict[str, Any]:
    return job.hyperparameters.to_dict()


def version(database: Database, job_id: str) -> int:
    with database.reader() as session:
        return session.get_one(FineTuningJob, job_id).spec_version


# DPO


def test_a_dpo_job_is_queued_with_numbers_for_auto(client: OpenAI, database: Database) -> None:
    file = upload(client, preference_bytes(300))
    job = create(client, training_file=file, method={"type": "dpo"})
    assert (job.status, job.model, job.method.type, job.method.supervised) == (
        "queued",
        BASE_MODEL,
        "dpo",
        None,
    )
    found = numbers(job)
    assert (found["n_epochs"], found["batch_size"], found["beta"]) == (3, 8, 0.1)
    assert found["learning_rate"] == pytest.approx(1.32e-3 / 20, rel=0.01)
    assert found["learning_rate_multiplier"] == 1.0
    assert job.method.dpo.hyperparameters.beta == 0.1
    assert client.fine_tuning.jobs.retrieve(job.id).method == job.method

    given = {"n_epochs": 1, "batch_size": 2, "learning_rate_multiplier": 2, "beta": 0.5, "lora_rank": 8}
    method = {"type": "dpo", "dpo": {"hyperparameters": given}}
    shown = create(client, training_file=file, method=method).method.dpo.hyperparameters.to_dict()
    assert {name: shown[name] for name in given} == given
    once = upload(client, preference_bytes(900))
    assert numbers(create(client, training_file=once, method={"type": "dpo"}))["n_epochs"] == 1

    plain = create(client)
    assert numbers(plain)["beta"] is None
    assert "beta" not in plain.method.supervised.hyperparameters.to_dict()
    assert (version(database, job.id), version(database, plain.id)) == (2, 1), "older workers leave it"


@pytest.mark.parametrize(
    ("method", "code", "param"),
    [
        (
            {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}},
            "invalid_value",
            "method.dpo.hyperparameters.beta",
        ),
        (
            {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}},
            "invalid_value",
            "method.dpo.hyperparameters.beta",
        ),
        ({"type": "dpo", "supervised": {}}, "invalid_value", "method.supervised"),
        ({"type": "supervised", "dpo": {}}, "invalid_value", "method.dpo"),
        (
            {"type": "supervised", "supervised": {"hyperparameters": {"beta": 0.1}}},
            "unknown_parameter",
            "method.supervised.hyperparameters.beta",
        ),
        ({"type": "reinforcement"}, "unsupported_method", "method.type"),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_settings_that_are_not_the_methods(
    client: OpenAI, method: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, training_file=upload(client, preference_bytes()), method=method)
    assert (refused.value.code, refused.value.param) == (code, param)
    assert list(client.fine_tuning.jobs.list()) == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_files_of_another_method_are_refused(client: OpenAI) -> None:
    chats, pairs = upload(client), upload(client, preference_bytes())
    long = preference_bytes(11) + preference_line("Recite.", other="leek " * 3000).encode()

    def refused(code: str, param: str, **parameters: Any) -> str:
        with pytest.raises(openai.BadRequestError) as caught:
            create(client, **parameters)
        assert (caught.value.code, caught.value.param) == (code, param)
        return str(caught.value)

    message = refused("wrong_format", "training_file", training_file=pairs)
    assert "Line 1 has a preferred and a non-preferred output" in message
    dpo: dict[str, Any] = {"method": {"type": "dpo"}}
    assert "Line 1 has one answer" in refused("wrong_format", "training_file", training_file=chats, **dpo)
    refused("wrong_format", "validation_file", training_file=pairs, validation_file=chats, **dpo)
    too_long = refused("example_too_long", "training_file", training_file=upload(client, long), **dpo)
    assert "Line 12 has " in too_long


# Going on from a model


def test_a_job_goes_on_from_what_an_alias_points_to(
    client: OpenAI, http: httpx2.Client, imported: str
) -> None:
    def point(**target: Any) -> None:
        known = http.get("/v1/aliases/kitchen")
        version = known.json()["version"] if known.status_code == 200 else None
        moved = http.put("/v1/aliases/kitchen", json=target | {"version": version})
        assert moved.status_code == 200, moved.text

    point(model=imported)
    job = create(client, model="kitchen")
    assert (job.model, job.model_extra["parent"], numbers(job)["lora_rank"]) == (imported, imported, RANK)
    point(model=BASE_MODEL)
    job = create(client, model="kitchen")
    assert (job.model, job.model_extra["parent"]) == (BASE_MODEL, None)
    point(split=[{"model": imported, "weight": 1}, {"model": BASE_MODEL, "weight": 1}])
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, model="kitchen")
    assert (refused.value.code, refused.value.param) == ("alias_is_split", "model")
    http.delete("/v1/aliases/kitchen")
    with pytest.raises(openai.NotFoundError) as missing:
        create(client, model="kitchen")
    assert missing.value.code == "model_not_found"
    assert "does not exist. Base models here: smollm2-135m-instruct." in missing.value.message


def test_a_job_goes_on_from_a_model(
    client: OpenAI, other_client: OpenAI, http: httpx2.Client, imported: str, database: Database
) -> None:
    job = create(client, model=imported, suffix="more")
    assert (job.status, job.model, job.model_extra["parent"]) == ("queued", imported, imported)
    found = numbers(job)
    assert (found["lora_rank"], found["lora_alpha"]) == (RANK, 8)
    assert client.fine_tuning.jobs.retrieve(job.id) == client.fine_tuning.jobs.list().data[0].model_copy(
        update={"queue_position": 0, "estimated_start": None}
    )
    assert version(database, job.id) == 2, "workers of version 2 take its modules from its weights"
    newest = client.fine_tuning.jobs.list_events(job.id).data[0]
    assert (newest.level, newest.message) == (
        "info",
        f"Training goes on from '{imported}' (rank {RANK}, alpha 8)",
    )
    modules = found["target_modules"]
    assert len(modules) == 7  # the first layer's
    assert all(module.startswith("model.layers.0.") for module in modules)
    same = {"lora_rank": RANK, "lora_alpha": 8, "max_length": 64, "target_modules": modules[::-1]}
    assert numbers(create(client, model=imported, extra_body=same))["max_length"] == 64
    assert create(client).model_extra["parent"] is None

    for name, value in (("lora_rank", 8), ("lora_alpha", 32), ("target_modules", "mlp")):
        with pytest.raises(openai.BadRequestError) as refused:
            create(client, model=imported, extra_body={name: value})
        assert (refused.value.code, refused.value.param) == ("invalid_value", name)
        assert imported in str(refused.value)
    with pytest.raises(openai.NotFoundError) as hidden:
        create(other_client, model=imported)
    assert (hidden.value.code, hidden.value.param) == ("model_not_found", "model")


def test_no_job_goes_on_from_a_bad_or_a_deleted_model(
    client: OpenAI, imported: str, database: Database, settings: Settings
) -> None:
    file = upload(client)
    with database.writer() as session:
        quarantine(session, imported, "it is bad")
    with pytest.raises(openai.APIStatusError) as refused:
        create(client, model=imported, training_file=file)
    assert (refused.value.status_code, refused.value.code, refused.value.param) == (
        424,
        "model_quarantined",
        "model",
    )
    with database.writer() as session:
        row = session.get_one(Adapter, imported)
        row.quarantine_reason = None
        weights = settings.storage_root / row.storage_key / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-8])
    with pytest.raises(openai.APIStatusError) as refused:
        create(client, model=imported, training_file=file)
    assert (refused.value.status_code, refused.value.code) == (424, "model_damaged")
    weights.unlink()
    with pytest.raises(openai.APIStatusError) as refused:
        create(client, model=imported, training_file=file)
    assert (refused.value.status_code, refused.value.code) == (503, "storage_unavailable")
    client.models.delete(imported)
    with pytest.raises(openai.NotFoundError):
        create(client, model=imported, training_file=file)
    assert list(client.fine_tuning.jobs.list()) == []


def test_a_deleted_parent_stays_until_its_last_child_has_ended(
    client: OpenAI, imported: str, database: Database, settings: Settings
) -> None:
    storage = open_storage(settings)
    first, second = create(client, model=imported), create(client, model=imported)
    client.models.delete(imported)

    def swept() -> list[str]:
        with database.reader() as session:
            found = find_orphans(session, storage, age_seconds=-60)
        assert found.missing == []
        return [key for key in found.unnamed if key.startswith("adapters/")]

    assert swept() == []
    client.fine_tuning.jobs.cancel(first.id)
    assert swept() == []
    client.fine_tuning.jobs.cancel(second.id)
    assert len(swept()) == 1


def test_the_lineage_of_a_model(
    client: OpenAI, http: httpx2.Client, imported: str, database: Database
) -> None:
    names = [imported]
    for suffix in ("child", "grandchild"):
        job = create(client, model=names[-1], suffix=suffix)
        names.append(publish(database, job.id, imported))
    child, grandchild = names[1:]
    checkpoint = f"{grandchild}:ckpt-step-3"
    client.models.delete(child)

    record = http.get(f"/v1/models/{grandchild}").json()
    assert record["parent"] == child
    assert record["lineage"] == [BASE_MODEL, imported, child, grandchild]
    of_checkpoint = http.get(f"/v1/models/{checkpoint}").json()
    assert of_checkpoint["lineage"] == [BASE_MODEL, imported, child, checkpoint]
    record = http.get(f"/v1/models/{imported}").json()
    assert (record["parent"], record["lineage"]) == (None, [BASE_MODEL, imported])
    record = http.get(f"/v1/models/{BASE_MODEL}").json()
    assert (record["parent"], record["lineage"]) == (None, [BASE_MODEL])
    listed = {each["id"]: each["parent"] for each in http.get("/v1/models").json()["data"]}
    assert listed == {
        BASE_MODEL: None,
        imported: None,
        grandchild: child,
        checkpoint: child,
        f"{child}:ckpt-step-3": imported,
    }
    assert http.get("/v1/fine_tuning/jobs").json()["data"][0]["parent"] == child


def publish(database: Database, job_id: str, like: str) -> str:
    """What a worker does in the end; the weights are the other model's."""
    with database.writer() as session:
        job = claim_next(session, "worker_1", [BASE_MODEL], 60.0)
        assert job is not None and job.id == job_id
        lease = queue.LEASES.lease_of(job)
        key = session.get_one(Adapter, like).storage_key
        publication.publish_checkpoint(session, job, lease, step=3, storage_key=key, metrics={"step": 3})
        result = files_service.create_result_file(
            session, job.project_id, "m.csv", StoredFile(f"files/{job_id}", 1, "")
        )
        return publication.publish_model(
            session,
            job,
            queue.LEASES.lease_of(job),
            storage_key=key,
            trained_tokens=1,
            result_file_id=result.id,
        )
