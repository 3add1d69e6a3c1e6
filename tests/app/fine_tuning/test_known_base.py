"""Jobs on base models whose files are damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from app.core.settings import BaseModelEntry, Settings
from app.models.adapters.validation import module_shapes
from tests.support.jobs import create
from tests.support.peft_folder import send, tensors, write_adapter
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.one_database


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny")


@pytest.fixture
def settings(settings: Settings, base: Path) -> Settings:
    tiny = BaseModelEntry(name="tiny", source=str(base), context=512)
    return settings.model_copy(update={"base_models": [tiny]})


@pytest.fixture
def imported(http: httpx2.Client, base: Path, tmp_path: Path) -> str:
    adapter = write_adapter(tmp_path / "adapter", tensors(module_shapes(base)))
    response = send(http, adapter, base_model="tiny")
    assert response.status_code == 200, response.text
    return response.json()["id"]


def truncate_weights(base: Path) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def break_configuration(base: Path) -> None:
    (base / "config.json").write_text("{")


def hide_weights(base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to(base / "nowhere")


@pytest.mark.parametrize("damage", [truncate_weights, break_configuration, hide_weights])
def test_a_damaged_base_is_named_until_it_is_mended(
    client: OpenAI, http: httpx2.Client, base: Path, imported: str, damage: Callable[[Path], None]
) -> None:
    whole = shutil.copytree(base, base.with_name("whole"))
    damage(base)
    asked: list[dict[str, Any]] = [{}, {"extra_body": {"dry_run": True}}]
    for parameters in asked:
        for model in ("tiny", imported):
            with pytest.raises(openai.InternalServerError) as refused:
                create(client, model=model, **parameters)
            assert (refused.value.status_code, refused.value.code) == (503, "base_model_damaged")
            assert "The files of 'tiny' cannot be read: " in refused.value.message
            assert "toque models pull tiny" in refused.value.message
    assert http.get(f"/v1/models/{imported}").json()["id"] == imported
    assert client.fine_tuning.jobs.list().data == []

    shutil.rmtree(base)
    shutil.copytree(whole, base)
    assert create(client, model="tiny").status == "queued"
    assert create(client, model=imported).status == "queued"
