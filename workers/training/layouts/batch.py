"""A micro-batch as tensors, whatever its layout."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sequences whose targets are predicted in one forward pass. There are T targets."""

    input_ids: Tensor
    """[rows, N]"""
    predicting: Tensor
    """[T]: places in the flattened rows of the tokens whose logits predict the targets."""
    targets: Tensor
    """[T]: token ids."""
    sequence: Tensor
    """[T]: the number of each target's sequence."""
    sequences: int
    """The number of sequences; those of one example follow each other."""

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: tensor.to(device, non_blocking=True)
            for name, tensor in tensors.items()
            if isinstance(tensor, Tensor)
        }
        return replace(self, **moved)

    def model_inputs(self, dtype: torch.dtype) -> dict[str, Any]:  # noqa: ARG002 - a layout's mask needs it
        """What the model is called with; `dtype` is that of its activations."""
        return {"input_ids": self.input_ids}
