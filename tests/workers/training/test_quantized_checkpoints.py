"""Checkpoints that are quantized already: those in MXFP4 are unpacked, and all others refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.fine_tuning.geometry import Geometry
from tests.support.tiny_bases import write_tiny_base
from tests.support.trainer import with_
from workers.training.failure import UntrainableError
from workers.training.model import load_base
from workers.training.protocol import TrainingSpec
from workers.training.ranks import Ranks
from workers.training.trainer import load_supported_base

_NUMBERS = torch.tensor(
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
)
"""What four bits stand for in MXFP4."""


def pack_experts(folder: Path) -> dict[str, Tensor]:
    """Replace the experts' matrices by random ones in MXFP4, and return these, by name."""
    torch.manual_seed(0)
    stored, unpacked = load_file(folder / "model.safetensors"), dict[str, Tensor]()
    for name in [name for name in stored if re.search(r"experts\.(gate_up|down)_proj$", name)]:
        experts, width_in, width_out = stored.pop(name).shape
        codes = torch.randint(0, 16, (experts, width_out, width_in // 32, 32), dtype=torch.uint8)
        exponents = torch.randint(-6, -3, codes.shape[:-1])
        stored[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
        stored[f"{name}_scales"] = (exponents + 127).to(torch.uint8)
        numbers = _NUMBERS[codes.long()] * torch.exp2(exponents.float())[..., None]
        unpacked[name] = numbers.reshape(experts, width_out, width_in).transpose(1, 2)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    return unpacked


def test_a_base_in_mxfp4_is_trained_and_counted_as_what_it_stands_for(tmp_path: Path) -> None:
    folder = write_tiny_base("gpt_oss", tmp_path / "base")
    before = Geometry.load(folder)
    unpacked = pack_experts(folder)
    assert len(unpacked) == 4

    base = load_base(folder, torch.device("cpu"))
    weights = dict(base.named_parameters())
    for name, numbers in unpacked.items():
        assert torch.equal(weights[name].float(), numbers), name
    geometry = Geometry.load(folder)
    assert (geometry.parameters, geometry.experts) == (before.parameters, before.experts)
    assert geometry.unpackable, "it would be packed twice"


def test_a_base_in_another_format_is_not_loaded(tmp_path: Path, spec: TrainingSpec) -> None:
    folder = write_tiny_base("llama", tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UntrainableError, match=r"quantized already \(fp8\)") as caught:
        load_supported_base(with_(spec, base_model_dir=str(folder)), Ranks())
    assert (caught.value.code, caught.value.param) == ("unsupported_base_model", "model")
