"""Adapters' folders as PEFT writes them, good and bad, for a base of two modules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import torch
from safetensors.torch import save_file

from tests.support.service import BASE_MODEL

BASE = {"model.layers.0.self_attn.q_proj": [12, 8], "model.layers.0.mlp.down_proj": [8, 20]}
FILES = ("adapter_config.json", "adapter_model.safetensors")
RANK = 4
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": RANK,
    "lora_alpha": 8,
    "bias": "none",
    "target_modules": ["q_proj", "down_proj"],
    "base_model_name_or_path": "/home/somebody/model",
    "lora_dropout": 0.05,
    "megatron_core": "megatron.core",
    "init_lora_weights": True,
    "modules_to_save": None,
    "peft_version": "0.21.2",
}


def tensors(base: dict[str, list[int]] = BASE, rank: int = RANK) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {}
    for module, (rows, columns) in base.items():
        made[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, columns)
        made[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, rank)
    return made


FIRST = next(iter(tensors()))


def write_adapter(folder: Path, weights: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors() if weights is None else weights, folder / "adapter_model.safetensors")
    return folder


def spoilt(value: float, dtype: torch.dtype = torch.float32, name: str = FIRST) -> dict[str, torch.Tensor]:
    weights = {key: tensor.to(dtype) for key, tensor in tensors().items()}
    weights[name][1, 2] = value
    return weights


def refolded(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def bad_weights(good: bytes) -> Iterator[tuple[str, bytes, str]]:
    """Names, files that are no safetensors, and what is to be said of each."""
    yield "empty", b"", "no header"
    yield "noise", b"\xff" * 1000, "no header"
    yield "truncated", good[:-20], "its header describes"
    yield "half a header", good[:60], "ends within it"
    yield "longer", good + b"\0", "its header describes"
    yield "pickle", b"\x80\x04\x95" + b"\0" * 100, "pickle"
    yield "torch's zip of pickles", b"PK\x03\x04" + b"\0" * 100, "pickle"
    yield "a list", refolded(b"[1, 2]"), "no header"
    yield "not JSON", refolded(b"{nonsense"), "header cannot be read"
    yield "deep", refolded(b'{"a":' + b"[" * 100_000), "header cannot be read"
    entry = b'{"dtype": "F32", "shape": [4, 8], "data_offsets": [%d, %d]}'
    yield "outside", refolded(b'{"a": %s}' % (entry % (64, 192)), bytes(128)), "does not begin where"
    yield "negative", refolded(b'{"a": %s}' % (entry % (-1, 127)), bytes(128)), "header cannot be read"
    yield "short", refolded(b'{"a": %s}' % (entry % (0, 64)), bytes(64)), "not as long as its shape"
    yield (
        "overlapping",
        refolded(b'{"a": %s, "b": %s}' % (entry % (0, 128), entry % (0, 128)), bytes(128)),
        "begin where",
    )


def send(http: httpx2.Client, folder: Path, **fields: str) -> httpx2.Response:
    headers = {name: fields.pop(name) for name in list(fields) if "-" in name}
    files = {name: (name, (folder / name).read_bytes()) for name in FILES if (folder / name).exists()}
    return http.post("/v1/adapters", files=files, data={"base_model": BASE_MODEL} | fields, headers=headers)
