"""Adapters as PEFT saves them, of random weights: on all linear layers, of rank 8 and 16 in turn.

    python -m benchmarks.serving.random_adapters BASE_MODEL_FOLDER FOLDER COUNT STRENGTH

At strength 1 they change a log-probability of the demo's base model by 0.18 on average.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from app.models.adapters.validation import Shapes, module_shapes

RANKS = (8, 16)
_ALPHA = 32
_B_DEVIATION = 0.02


def write_adapter(shapes: Shapes, folder: Path, rank: int, seed: int, strength: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for name, (rows, columns) in sorted(shapes.items()):
        # PEFT's A; its B is zeros before training.
        a = torch.rand(rank, columns, generator=generator).mul_(2).sub_(1).div_(columns**0.5)
        b = torch.randn(rows, rank, generator=generator).mul_(_B_DEVIATION * strength)
        weights[f"base_model.model.{name}.lora_A.weight"] = a.to(torch.bfloat16)
        weights[f"base_model.model.{name}.lora_B.weight"] = b.to(torch.bfloat16)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "r": rank,
        "lora_alpha": _ALPHA,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.rpartition(".")[2] for name in shapes}),
    }
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")


def main(base: str, folder: str, count: str, strength: str) -> None:
    shapes = module_shapes(Path(base))
    for number in range(int(count)):
        rank = RANKS[number % len(RANKS)]
        write_adapter(shapes, Path(folder) / f"{number:03}", rank, number, float(strength))


if __name__ == "__main__":
    main(*sys.argv[1:])
