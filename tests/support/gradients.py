"""The gradients of an adapter."""

from __future__ import annotations

import peft
import torch
from torch import Tensor


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
