"""What is known of a base model from its files is what torch makes of them, whatever its family."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from app.fine_tuning.geometry import Geometry
from app.fine_tuning.packing import Work
from tests.support.tiny_bases import FAMILIES, write_tiny_base


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_estimated(family: str, tmp_path: Path) -> None:
    folder = write_tiny_base(family, tmp_path / family)
    geometry = Geometry.load(folder)

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    output = model.get_output_embeddings()
    linear = {
        name: module.weight.numel()
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D")
        and module is not output
        and not name.endswith("shared_expert_gate")
    }
    assert {name: width_in * width_out for name, (width_in, width_out) in geometry.linear.items()} == linear
    assert geometry.layers == model.config.num_hidden_layers
    # Where experts have biases and routers have buffers, these count, too.
    weights = {name: weight.numel() for name, weight in model.named_parameters()}
    experts = [number for name, number in weights.items() if re.search(r"\.experts\.|_moe\.\w+put_", name)]
    assert geometry.base_bytes(2, "none") == pytest.approx(2 * sum(weights.values()), rel=1e-4)
    assert geometry.experts == pytest.approx(sum(experts), rel=0.02)
    assert geometry.active == (0.5 if experts else 0)

    micro_batch = Work(micro_batches=1, tokens=100, rows=100, scores=10_000, targets=50)
    trainable = geometry.trainable(4)
    held = geometry.held_bytes(micro_batch, trainable, 2, is_gpu=True)
    assert held > 100 * 2 * 2 * 64 * 6
    assert geometry.cost(micro_batch, trainable) > geometry.cost(Work(), trainable) == 0
