"""An adapter of every linear layer, its weights and their gradients."""

from __future__ import annotations

from pathlib import Path

import peft
import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.models.adapters.validation import module_shapes
from workers.training.model import add_lora, linear_modules


def with_lora(base: PreTrainedModel, folder: Path, dropout: float = 0.0) -> peft.PeftModel:
    """The base of that folder with an adapter of rank 4 on every linear layer."""
    modules = linear_modules(base, module_shapes(folder))
    return add_lora(base, rank=4, alpha=8, dropout=dropout, modules=modules)


def randomize(adapted: peft.PeftModel) -> peft.PeftModel:
    """The same random A and B in whatever model; PEFT starts with B = 0, which would hide half of it."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, weight in sorted(adapter_weights(adapted).items()):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return adapted


def adapter_weights(adapted: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}


def gradients(adapted: torch.nn.Module) -> Tensor:
    found = [weight.grad for _, weight in sorted(adapter_weights(adapted).items())]
    return torch.cat([grad.flatten() for grad in found if grad is not None])
