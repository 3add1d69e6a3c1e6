"""Frozen weights in four bits: how they are loaded, and unpacked for the time of one product.

A quantized base keeps its linear layers as NF4 (https://arxiv.org/abs/2305.14314): four bits a weight, and a
scale for every 64 of them, which is quantized, too. Embeddings, norms and the output layer stay as they are.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from bitsandbytes import functional
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from workers.training.sharding import local

Quantization = Literal["nf4", "none"]


def nf4_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return what transformers needs to quantize each weight as it is read and compute in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # FSDP shards floating-point storage only as weights: over bytes, training runs with a loss of 0
        # (https://github.com/huggingface/accelerate/issues/3983).
        bnb_4bit_quant_storage=torch.bfloat16,
    )


def keep_packed(model: nn.Module) -> None:
    """Keep bitsandbytes from packing weights anew for its own kernel: it does when a CPU first evaluates.

    From then on, they would be bytes in an order that nothing here can unpack.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def weight_of(layer: nn.Module) -> tuple[Tensor, Any]:
    """Return a linear layer's weight as it is stored, and what `unpacked` needs to compute with it."""
    # The layer keeps its state; its weight loses it when it is sharded.
    return cast(Tensor, layer.weight), getattr(layer, "quant_state", None)


def unpacked(weight: Tensor, state: Any) -> Tensor:
    """Return the weight as numbers, [outputs, inputs]; the stored one if it is not quantized."""
    return weight if state is None else cast(Any, functional).dequantize_4bit(weight, state)


def stored_bytes(model: nn.Module) -> int:
    """The bytes that this process holds of the model's weights, and the scales of the quantized ones."""
    plain = sum(local(weight).nbytes for weight in model.parameters())
    states = [weight_of(module)[1] for module in model.modules() if isinstance(module, Linear4bit)]
    return plain + sum(scale.numel() * scale.element_size() for state in states for scale in _scales(state))


def _scales(state: Any) -> tuple[Tensor, ...]:
    return state.absmax, state.state2.absmax
