"""Which adapters vLLM may have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from workers.inference.adapter_check import AdapterError, check_adapter, module_shapes  # noqa: E402

BASE = {"model.layers.0.self_attn.q_proj": [12, 8], "model.layers.0.mlp.down_proj": [8, 20]}
RANK = 4


def tensors() -> dict[str, Any]:
    made: dict[str, Any] = {}
    for module, (rows, columns) in BASE.items():
        made[f"base_model.model.{module}.lora_A.weight"] = torch.randn(RANK, columns)
        made[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, RANK)
    return made


FIRST = next(iter(tensors()))


def write_adapter(folder: Path, weights: dict[str, Any] | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    plain = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "bias": "none", "modules_to_save": None}
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    save_file(tensors() if weights is None else weights, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_as_peft_writes_it(tmp_path: Path) -> None:
    check_adapter(write_adapter(tmp_path), BASE, RANK)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"r": 8}, "its rank is 8; this engine serves up to 4"),
        ({"r": "4"}, "its rank"),
        ({"r": 3}, r"shape \[4, \d+\] instead of \[3, \d+\]"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": 1e9}, "enormous"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"bias": "all"}, "bias"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_configurations_that_are_not_served(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    with pytest.raises(AdapterError, match=says):
        check_adapter(write_adapter(tmp_path, **config), BASE, RANK)


def spoilt(value: float) -> dict[str, Any]:
    weights = tensors()
    weights[FIRST][1, 2] = value
    return weights


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (spoilt(float("nan")), "not numbers"),
        (spoilt(float("-inf")), "not numbers"),
        (spoilt(1e30), "enormous"),
        ({}, "no weights"),
        ({FIRST: tensors()[FIRST]}, "only one half"),
        (tensors() | {FIRST: torch.randn(RANK, 9)}, "has shape"),
        (tensors() | {"base_model.model.model.layers.9.x.lora_A.weight": torch.ones(1)}, "fits no module"),
        (tensors() | {"base_model.model.lm_head.weight": torch.ones(1)}, "fits no module"),
    ],
)
def test_weights_that_would_spoil_the_engine(tmp_path: Path, weights: dict[str, Any], says: str) -> None:
    with pytest.raises(AdapterError, match=says):
        check_adapter(write_adapter(tmp_path, weights), BASE, RANK)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    path = write_adapter(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(AdapterError, match="cannot be read"):
        check_adapter(tmp_path, BASE, RANK)
    path.unlink()
    with pytest.raises(AdapterError, match=f"{name} is missing"):
        check_adapter(tmp_path, BASE, RANK)


def test_the_base_models_linear_modules(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 100}')
    weights = {f"{module}.weight": torch.ones(shape) for module, shape in BASE.items()}
    others = {
        "model.embed_tokens.weight": torch.ones(100, 8),
        "lm_head.weight": torch.ones(100, 8),
        "model.norm.weight": torch.ones(8),
    }
    save_file(weights | others, tmp_path / "model.safetensors")
    assert module_shapes(tmp_path) == BASE
