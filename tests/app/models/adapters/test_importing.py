"""Adapters from elsewhere: taken in, listed, taken out again; bad ones refused without a trace."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from openai import OpenAI
from sqlalchemy import select

from app.core.database import Database
from app.core.settings import Settings
from app.models.adapters.models import Adapter
from app.models.adapters.service import quarantine
from app.models.adapters.validation import Shapes, module_shapes
from app.orphans import find_orphans, sweep_orphans
from app.storage import open_storage
from app.storage.incoming import LocalIncomingFile
from tests.support.cache_clock import MOVES, CacheClock
from tests.support.engine_stand_in import EngineStandIn, register_engine, run_engine
from tests.support.peft_folder import FILES, bad_weights, send, tensors, write_adapter
from tests.support.service import BASE_MODEL, OTHER_KEY, Service, run_service

pytestmark = pytest.mark.one_database


@pytest.fixture(scope="session")
def base(base_models_dir: Path) -> Shapes:
    """The first layer's modules of the demo's base model."""
    shapes = module_shapes(base_models_dir / BASE_MODEL)
    return {name: shape for name, shape in shapes.items() if name.startswith("model.layers.0.")}


@pytest.fixture
def adapter(tmp_path: Path, base: Shapes) -> Path:
    return write_adapter(tmp_path / "adapter", tensors(base))


def stored(settings: Settings) -> list[Path]:
    root = settings.storage_root
    return [*root.glob("tmp/*"), *root.glob("adapters/*")]


def rows(database: Database) -> list[Adapter]:
    with database.reader() as session:
        return list(session.scalars(select(Adapter)))


def download(http: httpx2.Client, name: str) -> dict[str, bytes]:
    response = http.get(f"/v1/adapters/{name}/download")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-tar"
    assert int(response.headers["content-length"]) == len(response.content)
    with tarfile.open(fileobj=io.BytesIO(response.content)) as tar:
        assert all(member.isreg() and member.mode == 0o644 for member in tar)
        return {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore


def test_an_adapter_goes_in_and_comes_out(
    http: httpx2.Client, client: OpenAI, adapter: Path, settings: Settings, database: Database
) -> None:
    response = send(http, adapter, suffix="house style")
    assert response.status_code == 200, response.text
    model = response.json()
    name = model["id"]
    assert name.startswith(f"ft:{BASE_MODEL}:default:house-style:")
    assert (model["base_model"], model["fine_tuning_job_id"], model["quarantine_reason"]) == (
        BASE_MODEL,
        None,
        None,
    )
    assert client.models.retrieve(name).id == name
    assert name in [each.id for each in client.models.list()]

    [folder] = stored(settings)
    assert sorted(path.name for path in folder.iterdir()) == [*FILES, "manifest.json"]
    files = download(http, name)
    assert sorted(files) == list(FILES)
    assert files[FILES[1]] == (adapter / FILES[1]).read_bytes()
    config = json.loads(files[FILES[0]])
    assert config == json.loads((folder / FILES[0]).read_bytes()) | {
        "target_modules": config["target_modules"]
    }
    assert (config["base_model_name_or_path"], "lora_dropout" in config) == (BASE_MODEL, False)

    again = send(http, write_files(adapter.parent / "again", files)).json()["id"]
    assert again != name
    assert download(http, again) == files
    client.models.delete(name)
    assert http.get(f"/v1/adapters/{name}/download").status_code == 404
    assert len(rows(database)) == 2


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_it_loads_in_peft_as_it_was(http: httpx2.Client, base_models_dir: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_models_dir / BASE_MODEL, dtype=torch.float32)
    made: Any = get_peft_model(
        model,
        LoraConfig(r=2, lora_alpha=8, use_rslora=True, target_modules=["q_proj"], layers_to_transform=[3]),
    )
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=20.0, generator=torch.Generator().manual_seed(1))
    made.save_pretrained(tmp_path / "mine")
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = made(ids).logits
    name = send(http, tmp_path / "mine").json()["id"]

    taken = write_files(tmp_path / "taken", download(http, name))
    model = AutoModelForCausalLM.from_pretrained(base_models_dir / BASE_MODEL, dtype=torch.float32)
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits, expected, atol=1e-2)
        # How a sum is cut among threads shows in the last digits.
        found = PeftModel.from_pretrained(model, taken)(ids).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def hostile(base: Shapes, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Each bad adapter, in `folder` when its name comes: the code and what is to be said."""
    first = next(iter(tensors(base)))
    write_adapter(folder, tensors(base, 64), r=64)
    yield "rank", "rank_too_large", "its rank is 64; up to 32"
    write_adapter(folder, tensors(base), modules_to_save=["lm_head"])
    yield "modules_to_save", "unsupported_adapter", "modules_to_save"
    write_adapter(folder, tensors(base), use_dora=True)
    yield "DoRA", "unsupported_adapter", "use_dora"
    for value in (float("nan"), float("inf")):
        weights = tensors(base)
        weights[first][0, 0] = value
        write_adapter(folder, weights)
        yield str(value), "invalid_weights", "not numbers"
    write_adapter(folder, tensors(base) | {first: torch.ones(4, 7)})
    yield "shape", "base_model_mismatch", "has shape [4, 7] instead of"
    write_adapter(folder)
    yield "another base", "base_model_mismatch", "instead of"
    write_adapter(folder, tensors({"transformer.h.0.attn": [8, 8]}))
    yield "another architecture", "base_model_mismatch", "fits no module of the base model"
    (write_adapter(folder, tensors(base)) / FILES[0]).write_text('{"r": ')
    yield "config", "invalid_adapter_config", "adapter_config.json cannot be read"
    good = (write_adapter(folder, tensors(base)) / FILES[1]).read_bytes()
    for case, content, says in bad_weights(good):
        (folder / FILES[1]).write_bytes(content)
        yield case, "invalid_safetensors", says


def test_bad_ones_leave_nothing(
    http: httpx2.Client, base: Shapes, tmp_path: Path, settings: Settings, database: Database
) -> None:
    for case, code, says in hostile(base, tmp_path / "bad"):
        response = send(http, tmp_path / "bad")
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, code), (case, error)
        assert error["param"] in FILES
        assert says in error["message"], case
    assert (stored(settings), rows(database)) == ([], [])


def test_the_form_must_be_whole(
    http: httpx2.Client, adapter: Path, settings: Settings, database: Database
) -> None:
    def refused(response: httpx2.Response, status: int, code: str, param: str | None) -> None:
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (status, code, param), error

    refused(send(http, adapter, base_model="gpt-5"), 404, "model_not_found", "base_model")
    refused(send(http, adapter, suffix="../up"), 400, "invalid_value", "suffix")
    refused(send(http, adapter, suffix="x" * 65), 400, "invalid_value", "suffix")
    refused(send(http, adapter, name="mine"), 400, "unknown_parameter", "name")
    nothing = http.post("/v1/adapters", json={"base_model": BASE_MODEL})
    refused(nothing, 415, "unsupported_media_type", None)
    files = {name: (name, (adapter / name).read_bytes()) for name in FILES}
    refused(http.post("/v1/adapters", files=files), 400, "missing_required_parameter", "base_model")
    pickled = files | {"adapter_model.bin": ("adapter_model.bin", bytes(10_000))}
    refused(http.post("/v1/adapters", files=pickled), 400, "invalid_value", "adapter_model.bin")
    for name in FILES:
        (adapter / name).unlink()
        refused(send(http, adapter), 400, "missing_required_parameter", name)
        (adapter / name).write_bytes(files[name][1])
    assert (stored(settings), rows(database)) == ([], [])


def test_one_over_the_limit(settings: Settings, database: Database, adapter: Path) -> None:
    small = settings.model_copy(update={"max_file_bytes": 1000})
    with run_service(small) as service, service.http() as http:
        response = send(http, adapter)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (413, "file_too_large", FILES[1])
    assert (stored(settings), rows(database)) == ([], [])


def test_a_full_storage(
    http: httpx2.Client,
    adapter: Path,
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for method in ("write", "finish"):
        with monkeypatch.context() as patch:
            patch.setattr(LocalIncomingFile, method, full)
            response = send(http, adapter)
        assert (response.status_code, response.json()["error"]["code"]) == (507, "storage_full")
    assert (stored(settings), rows(database)) == ([], [])


def test_one_that_is_sent_again_is_imported_once(
    http: httpx2.Client, client: OpenAI, adapter: Path, settings: Settings
) -> None:
    key = {"idempotency-key": "k"}
    first = send(http, adapter, **key).json()["id"]
    assert send(http, adapter, **key).json()["id"] == first
    assert send(http, adapter, **{"x-stainless-retry-count": "1"}).json()["id"] == first
    assert send(http, adapter, suffix="x", **key).json()["error"]["code"] == "idempotency_key_reused"
    assert len(stored(settings)) == 1
    client.models.delete(first)
    assert send(http, adapter, **key).status_code == 404
    assert send(http, adapter, **{"x-stainless-retry-count": "1"}).json()["id"] != first


def test_another_projects_adapter_is_not_there(
    http: httpx2.Client, other_client: OpenAI, service: Service, adapter: Path
) -> None:
    name = send(http, adapter).json()["id"]
    with pytest.raises(openai.NotFoundError):
        other_client.models.retrieve(name)
    with service.http(OTHER_KEY) as other:
        assert other.get(f"/v1/adapters/{name}/download").status_code == 404
    for nobodys in (BASE_MODEL, "none", "%2e%2e%2fetc", "%00"):
        response = http.get(f"/v1/adapters/{nobodys}/download")
        assert response.status_code in (400, 404), response.text


def test_without_the_base_model_an_engine_compares_the_shapes(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    elsewhere = settings.model_copy(update={"models_dir": tmp_path / "none"})
    with run_service(elsewhere) as service, service.http() as http:
        assert send(http, write_adapter(tmp_path / "any")).status_code == 200
        bad = write_adapter(tmp_path / "bad", {n: w * float("nan") for n, w in tensors().items()})
        assert send(http, bad).status_code == 400


def test_a_quarantined_model_says_why(
    http: httpx2.Client, client: OpenAI, adapter: Path, database: Database
) -> None:
    name = send(http, adapter).json()["id"]
    for reason in ("it has weights that are not numbers", "another reason"):
        with database.writer() as session:
            quarantine(session, name, reason)
    shown = client.models.retrieve(name)
    assert shown.model_extra is not None
    assert shown.model_extra["quarantine_reason"] == "it has weights that are not numbers"
    listed = {model.id: model for model in client.models.list()}
    assert listed[name].model_extra == shown.model_extra | {"lineage": None, "target_modules": None}

    body = {"model": name, "messages": [{"role": "user", "content": "Soup?"}]}
    asked = [http.post("/v1/chat/completions", json=body), http.get(f"/v1/adapters/{name}/download")]
    for response, param in zip(asked, ("model", "name"), strict=True):
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (424, "model_quarantined", param)
        assert "it has weights that are not numbers" in error["message"]
        assert response.headers["x-should-retry"] == "false"
    client.models.delete(name)


def test_it_is_answered_until_it_is_quarantined(
    http: httpx2.Client, client: OpenAI, adapter: Path, database: Database, cache_clock: CacheClock
) -> None:
    engine = EngineStandIn()
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        socket = str(Path(folder) / "engine.sock")
        with run_engine(engine, socket):
            register_engine(database, f"unix:{socket}")
            name = send(http, adapter).json()["id"]
            body = {"model": name, "messages": [{"role": "user", "content": "Soup?"}]}
            assert http.post("/v1/chat/completions", json=body).json()["model"] == name
            assert engine.bodies[-1]["model"] == name
            with database.writer() as session:
                quarantine(session, name, "it is bad")
            cache_clock.pass_time(MOVES)
            asked = len(engine.bodies)
            assert http.post("/v1/chat/completions", json=body).status_code == 424
            assert len(engine.bodies) == asked


def test_files_that_cannot_be_read(http: httpx2.Client, adapter: Path, settings: Settings) -> None:
    name = send(http, adapter).json()["id"]
    [folder] = stored(settings)
    weights = folder / FILES[1]
    content = weights.read_bytes()
    weights.write_bytes(content[:-4])
    damaged = http.get(f"/v1/adapters/{name}/download")
    assert (damaged.status_code, damaged.json()["error"]["code"]) == (424, "model_damaged")
    weights.unlink()
    away = http.get(f"/v1/adapters/{name}/download")
    assert (away.status_code, away.json()["error"]["code"]) == (503, "storage_unavailable")
    assert away.headers["retry-after"]


def test_folders_without_rows_are_swept_by_age(
    http: httpx2.Client, client: OpenAI, adapter: Path, settings: Settings, database: Database
) -> None:
    storage = open_storage(settings)
    kept, deleted = (send(http, adapter).json()["id"] for _ in range(2))
    client.models.delete(deleted)
    keys = {row.name: row.storage_key for row in rows(database)}
    nobodys, young = (settings.storage_root / f"adapters/{name}" for name in ("nobodys", "young"))
    day_ago = time.time() - 86400 - 60
    for folder in (nobodys, young):
        write_adapter(folder)
    for folder in (nobodys, settings.storage_root / keys[kept], settings.storage_root / keys[deleted]):
        os.utime(folder, (day_ago, day_ago))
    swept = sweep_orphans(database, storage)
    with database.reader() as session:
        assert find_orphans(session, storage).missing == []
    assert swept == sorted(["adapters/nobodys", keys[deleted]])
    assert sorted(stored(settings)) == sorted([young, settings.storage_root / keys[kept]])


def check(http: httpx2.Client, name: str) -> dict[str, Any]:
    response = http.post(f"/v1/adapters/{name}/check")
    assert response.status_code == 200, response.text
    return response.json()


def ask_for(http: httpx2.Client, name: str) -> int:
    body = {"model": name, "messages": [{"role": "user", "content": "Soup?"}]}
    return http.post("/v1/chat/completions", json=body).status_code


def test_a_mended_adapter_is_checked_again(
    http: httpx2.Client,
    client: OpenAI,
    adapter: Path,
    settings: Settings,
    database: Database,
    cache_clock: CacheClock,
) -> None:
    name = send(http, adapter).json()["id"]
    assert check(http, name)["quarantine_reason"] is None
    weights = stored(settings)[0] / FILES[1]
    content = weights.read_bytes()

    weights.write_bytes(content[:-4])
    found = check(http, name)
    assert "its header describes" in found["quarantine_reason"]
    assert client.models.retrieve(name).to_dict() == found
    assert ask_for(http, name) == 424

    weights.write_bytes(content[:-4] + b"\0\0\0\0")
    assert "is not as it was written" in check(http, name)["quarantine_reason"], "the reason is today's"
    weights.unlink()
    away = http.post(f"/v1/adapters/{name}/check")
    assert (away.status_code, away.json()["error"]["code"]) == (503, "storage_unavailable")
    assert "is not as it was written" in (rows(database)[0].quarantine_reason or ""), "that is no verdict"

    weights.write_bytes(content)
    with database.writer() as session:
        session.get_one(Adapter, name).parity = {"tokens": 0}
    mended = check(http, name)
    assert (mended["quarantine_reason"], rows(database)[0].parity) == (None, None)
    cache_clock.pass_time(MOVES)
    assert ask_for(http, name) == 503, "only an engine is missing"


def test_a_raised_limit_lifts_the_quarantine(
    settings: Settings, database: Database, http: httpx2.Client, tmp_path: Path, base: Shapes
) -> None:
    name = send(http, write_adapter(tmp_path / "wide", tensors(base, 32), r=32)).json()["id"]
    entry = settings.base_models[0]

    def with_rank(rank: int) -> Settings:
        return settings.model_copy(update={"base_models": [entry.model_copy(update={"max_rank": rank})]})

    with run_service(with_rank(16)) as service, service.http() as lowered:
        assert "its rank is 32; up to 16" in check(lowered, name)["quarantine_reason"]
        assert ask_for(lowered, name) == 424
    with run_service(with_rank(64)) as service, service.http() as raised:
        assert check(raised, name)["quarantine_reason"] is None
        assert ask_for(raised, name) == 503


def test_nobody_checks_what_is_not_theirs(http: httpx2.Client, service: Service, adapter: Path) -> None:
    name = send(http, adapter).json()["id"]
    with service.http(OTHER_KEY) as other:
        assert other.post(f"/v1/adapters/{name}/check").status_code == 404
    for nobodys in (BASE_MODEL, "none", "%2e%2e%2fetc", "%00"):
        assert http.post(f"/v1/adapters/{nobodys}/check").status_code in (400, 404)


def test_a_models_parity(http: httpx2.Client, client: OpenAI, adapter: Path, database: Database) -> None:
    name = send(http, adapter).json()["id"]
    parity = {"tokens": 12, "distance": 0.03, "base_distance": 0.02, "effect": 1.5, "tolerance": 0.15}
    for recorded, shown in ((None, None), ({"tokens": 0}, None), (parity, parity)):
        with database.writer() as session:
            session.get_one(Adapter, name).parity = recorded
        extra = client.models.retrieve(name).model_extra or {}
        assert extra["parity"] == shown
    base = client.models.retrieve(BASE_MODEL).model_extra or {}
    assert base["parity"] is None
