"""The decoder layers of a base model, which are sharded, recomputed or moved to the device one by one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def decoder_layers(base: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that transformers can checkpoint, which are those of the decoder.

    The self-test refuses a base that has none.
    """
    return (module for module in nn.Module.modules(base) if isinstance(module, GradientCheckpointingLayer))
