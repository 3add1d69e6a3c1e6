"""The base model as the trainer runs it: frozen, over packed batches, with LoRA on its linear layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import peft
import psutil
import safetensors.torch
import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from app.datasets.chat_template import ChatTemplate
from app.fine_tuning.packing import Limits
from app.fine_tuning.precision import cpu_has_bf16
from app.models.adapters.validation import WEIGHTS
from workers.training.dataset import PackedBatch
from workers.training.quantization import (
    Quantization,
    keep_packed,
    nf4_config,
    stored_bytes,
    unpacked,
    weight_of,
)

ADAPTER = "default"

WRITTEN_OUT = 128 * 128
"""Up to this many attention scores, three plain products are faster than torch's CPU kernel, which is made
for long rows (four times as fast at 48 x 65), and keeping the scores for the backward pass costs little."""


def load_base(
    folder: Path, device: torch.device, quantization: Quantization | None = None
) -> PreTrainedModel:
    """Load the frozen base, in bf16 (as it is served) where the device computes in it, otherwise in fp32.

    With `quantization`, its linear layers are stored in that type and unpacked for each product.
    """
    registry, models = cast(Any, AttentionInterface), cast(Any, AutoModelForCausalLM)
    registry.register("packed", packed_attention)
    logging.disable_progress_bar()
    dtype = compute_dtype(device)
    model = models.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="packed",
        local_files_only=True,
        quantization_config=nf4_config(dtype) if quantization else None,
    )
    keep_packed(model)
    return model.to(device).requires_grad_(False)


def compute_dtype(device: torch.device) -> torch.dtype:
    """The type of weights and activations; the LoRA weights themselves are always fp32."""
    return torch.bfloat16 if device.type == "cuda" or cpu_has_bf16() else torch.float32


@dataclass(frozen=True, slots=True)
class WarmBase:
    """A loaded base model, kept between jobs."""

    folder: Path
    model: PreTrainedModel
    template: ChatTemplate
    device: torch.device
    resident_memory_bytes: int
    """Memory of the process (or the GPU's allocator) with all weights in use, and what earlier jobs left."""

    def with_resident(self) -> WarmBase:
        """The same base, its resident memory measured again between two jobs."""
        resident = _memory_in_use(self.device)
        return replace(self, resident_memory_bytes=max(self.resident_memory_bytes, resident))


def load_warm_base(folder: Path) -> WarmBase:
    """Load the base model on the best device of this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # On the CPU, weights are mapped from their file and become resident one by one, as they are used.
    before = _memory_in_use(device)
    model = load_base(folder, device)
    return WarmBase(folder, model, ChatTemplate.load(folder), device, before + stored_bytes(model))


def _memory_in_use(device: torch.device) -> int:
    return (
        torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    )


def batch_limits(base: PreTrainedModel, device: torch.device) -> Limits:
    """The limits of a micro-batch of this base on this device."""
    vocabulary: int = cast(Any, base.config).get_text_config().vocab_size
    return Limits.of_device(is_gpu=device.type == "cuda", vocabulary=vocabulary)


def add_lora(
    base: PreTrainedModel,
    rank: int,
    alpha: float,
    dropout: float,
    modules: Sequence[str] = (),
    *,
    use_rslora: bool = False,
) -> peft.PeftModel:
    """Add a fresh adapter, initialized from torch's random numbers.

    It adapts the modules of these names, or every linear layer but the output layer.
    """
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=cast(int, alpha),  # PEFT only divides it
        lora_dropout=dropout,
        target_modules=list(modules) or linear_modules(base),
        use_rslora=use_rslora,
    )
    config._register_custom_module({nn.Linear: LoraLinear})  # pyright: ignore[reportPrivateUsage]
    return cast(peft.PeftModel, peft.get_peft_model(base, config))


def linear_modules(base: PreTrainedModel) -> list[str]:
    """Return the full names of all linear layers but the output layer."""
    output = cast(nn.Module | None, cast(Any, base).get_output_embeddings())
    modules = cast(Iterator[tuple[str, nn.Module]], nn.Module.named_modules(base))
    return [name for name, module in modules if isinstance(module, nn.Linear) and module is not output]


def load_weights(model: peft.PeftModel, folder: Path) -> None:
    """Replace the model's adapter weights with a saved adapter's."""
    tensors = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    cast(Any, peft).set_peft_model_state_dict(model, tensors)


def target_logits(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Compute the logits of the batch's targets only, [T, vocabulary] in fp32."""
    places = batch.key_rows.shape[1]
    dtype = next(model.parameters()).dtype
    # [places, places], the same for all examples: 0 where a token attends, minus infinity where it may not.
    causal = torch.full((places, places), -torch.inf, dtype=dtype, device=batch.input_ids.device).triu(1)
    output = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=causal[None, None],
        logits_to_keep=batch.predicting,
        use_cache=False,
        packed=batch,
    )
    return output.logits[0].float()


def packed_attention(
    module: nn.Module,  # noqa: ARG001 - part of the interface, as are the defaults
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    packed: PackedBatch,
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - the base is frozen: nothing to regularize
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention inside each sequence of a packed row, for transformers' attention layers.

    Args:
        module: the attention layer.
        query: [1, heads, N, width]
        key: [1, key heads, N, width]
        value: as `key`.
        attention_mask: [1, 1, P + L, P + L], causal.
        packed: the row's layout.
        scaling: the factor of the scores.
        dropout: not applied.
        kwargs: arguments that the base's architecture adds.

    Returns:
        [1, N, heads, width]

    Raises:
        NotImplementedError: the base's attention is not plain causal attention.
    """
    window = kwargs.get("sliding_window")
    if (
        kwargs.get("softcap")
        or kwargs.get("s_aux") is not None
        or (window and window < packed.key_rows.shape[1])
    ):
        raise NotImplementedError(
            "the base model's attention (soft cap, sinks or a short window) is not supported"
        )
    heads, width = query.shape[1], query.shape[3]
    shared = packed.shared
    mask = attention_mask[0, 0]
    scale = width**-0.5 if scaling is None else scaling

    def rows(states: Tensor, places: Tensor) -> Tensor:
        """[1, heads, N, width] -> [B, heads, L or P + L, width], padded."""
        chosen = states.transpose(1, 2)[0].index_select(0, places.flatten())
        return chosen.view(*places.shape, *chosen.shape[1:]).transpose(1, 2)

    own = attend(
        rows(query, packed.query_rows),
        rows(key, packed.key_rows),
        rows(value, packed.key_rows),
        mask[shared:],
        scale,
    )
    out = own.transpose(1, 2).reshape(-1, heads, width).index_select(0, packed.own_places)
    if shared:
        first = (..., slice(None, shared), slice(None))
        begin = attend(query[first], key[first], value[first], mask[:shared, :shared], scale)
        out = torch.cat([begin.transpose(1, 2)[0], out])
    return out.unsqueeze(0), None


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Compute attention with grouped heads, [B, heads, L, width].

    The last query attends to every key of `mask` [L, keys].
    """
    batch, heads, length, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    if query.device.type != "cpu" or length * keys > WRITTEN_OUT:
        causal = length == keys
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            None if causal else mask,
            is_causal=causal,
            scale=scale,
            enable_gqa=heads != groups,
        )
    # A group's heads share its keys, so they are rows of the same product.
    q = query.reshape(batch * groups, heads // groups * length, width)
    k, v = key.reshape(batch * groups, keys, width), value.reshape(batch * groups, keys, width)
    scores = torch.baddbmm(mask.repeat(heads // groups, 1), q, k.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(dim=-1), v).view(batch, heads, length, width)


class LoraLinear(lora.Linear):
    """PEFT's LoRA layer with its own forward pass: same parameters, same result, far fewer operations."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002 - PEFT's signature
        """`x @ Wᵀ + bias + scaling · dropout(x) @ Aᵀ @ Bᵀ`, over the last dimension of `x`."""
        layer = cast(Any, self)
        dropped = layer.lora_dropout[ADAPTER](x)
        return cast(Any, _LoraProduct).apply(
            x,
            None if dropped is x else dropped,
            *weight_of(layer.base_layer),
            layer.base_layer.bias,
            layer.lora_A[ADAPTER].weight,
            layer.lora_B[ADAPTER].weight,
            layer.scaling[ADAPTER],
        )


class _LoraProduct(torch.autograd.Function):
    """The product and its gradient, written out: two large products each way, nothing in between.

    A quantized weight is unpacked in both passes and never kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        state: Any,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        a, b = a.to(x.dtype), b.to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        low = (rows if dropped is None else dropped.reshape(rows.shape)) @ a.t()
        out = F.linear(rows, unpacked(weight, state), bias).addmm_(low, b.t(), alpha=scaling)
        ctx.save_for_backward(x, dropped, weight, a, b, low)
        ctx.state, ctx.scaling = state, scaling
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_outputs[0]
        x, dropped, weight, a, b, low = ctx.saved_tensors
        grad_rows = grad.reshape(-1, grad.shape[-1])
        rows = (x if dropped is None else dropped).reshape(-1, x.shape[-1])
        grad_low = (grad_rows @ b).mul_(ctx.scaling)
        grad_a = (grad_low.t() @ rows).float()
        grad_b = (low.t() @ grad_rows).t().float().mul_(ctx.scaling)
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_rows @ unpacked(weight, ctx.state)
            if dropped is None:
                grad_x.addmm_(grad_low, a)
            grad_x = grad_x.view(x.shape)
        if ctx.needs_input_grad[1]:
            grad_dropped = (grad_low @ a).view(x.shape)
        return grad_x, grad_dropped, None, None, None, grad_a, grad_b, None
