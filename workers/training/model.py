"""The base model as the trainer runs it: frozen, with LoRA on its linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging
from transformers.utils.quantization_config import Mxfp4Config

from app.fine_tuning.packing import Limits
from app.fine_tuning.precision import cpu_has_bf16
from app.models.adapters.validation import WEIGHTS, Shapes
from app.models.quantized_checkpoints import MXFP4, checkpoint_quantization
from app.models.serving_support import adapted
from app.models.token_mixing import TokenMixing, token_mixing
from workers.training.layouts.self_test import SelfTest, self_test, subject
from workers.training.quantization import (
    Quantization,
    keep_packed,
    nf4_config,
    stored_bytes,
    unpacked,
    weight_of,
)
from workers.training.ranks import Ranks
from workers.training.sharding import shard

ADAPTER = "default"


class UnsupportedBaseError(Exception):
    """A base model that no adapter can be trained on; the message says why."""


def load_base(
    folder: Path,
    device: torch.device,
    quantization: Quantization = "none",
    ranks: Ranks | None = None,
) -> PreTrainedModel:
    """Load the frozen base, in bf16 (as it is served) where the device computes in it, otherwise in fp32.

    With `quantization`, its linear layers are stored in four bits and unpacked for each product. With several
    `ranks`, each keeps its share of every weight.
    """
    logging.disable_progress_bar()
    dtype = compute_dtype(device)
    ranks = ranks or Ranks()
    model = cast(Any, AutoModelForCausalLM).from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        quantization_config=_quantization_config(folder, quantization, dtype),
        # Left to itself, bitsandbytes puts all of the base on a GPU that only has to have room for a share.
        device_map={"": "cpu"} if ranks.size > 1 else None,
    )
    keep_packed(model)
    model.requires_grad_(False).eval()
    if ranks.size == 1:
        return model.to(device)
    shard(model, ranks)
    return model


def _quantization_config(
    folder: Path, quantization: Quantization, dtype: torch.dtype
) -> BitsAndBytesConfig | Mxfp4Config | None:
    if checkpoint_quantization(folder) == MXFP4:
        # Otherwise, whether it is unpacked depends on what is installed: in MXFP4, nothing is differentiable.
        return Mxfp4Config(dequantize=True)
    return nf4_config(dtype) if quantization == "nf4" else None


def compute_dtype(device: torch.device) -> torch.dtype:
    """The type of weights and activations; the LoRA weights themselves are always fp32."""
    return torch.bfloat16 if device.type == "cuda" or cpu_has_bf16() else torch.float32


@dataclass(frozen=True, slots=True)
class WarmBase:
    """A loaded base model, kept between jobs."""

    folder: Path
    quantization: Quantization
    model: PreTrainedModel
    device: torch.device
    ranks: Ranks
    """The processes that train together on it, among which its weights are sharded."""
    resident_memory_bytes: int
    """Memory of the process (or the GPU's allocator) with all weights in use, and what earlier jobs left."""
    self_test: SelfTest
    self_test_subject: str

    def token_mixing(self, longest: int) -> TokenMixing:
        """Choose the layout of a job whose longest sequence has this many tokens."""
        mixing = token_mixing(cast(Any, self.model.config).get_text_config().to_dict(), longest)
        if mixing.layout == "packed" and self.self_test.layout == "padded":
            return TokenMixing("padded", self.self_test.reason)
        return mixing

    def with_resident(self) -> WarmBase:
        """The same base, its resident memory measured again between two jobs."""
        resident = _memory_in_use(self.device)
        return replace(self, resident_memory_bytes=max(self.resident_memory_bytes, resident))


def load_warm_base(
    folder: Path,
    ranks: Ranks | None = None,
    quantization: Quantization = "none",
    known_test: Callable[[str], SelfTest | None] = lambda _: None,
) -> WarmBase:
    """Load the base model, or this rank's share of it, on the best device of this machine, and test it.

    `known_test` may know the outcome for a subject of the test, which then is not run.

    Raises:
        UnsupportedBaseError: it fails the self-test.
    """
    ranks = ranks or Ranks()
    device = ranks.device
    # On the CPU, weights are mapped from their file and become resident one by one, as they are used.
    before = _memory_in_use(device)
    model = load_base(folder, device, quantization, ranks)
    resident = before + stored_bytes(model)
    of_test = subject(folder, device, quantization)
    tested = known_test(of_test) or self_test(model)
    if tested.layout is None:
        raise UnsupportedBaseError(f"{tested.reason}, as its self-test found")
    return WarmBase(folder, quantization, model, device, ranks, resident, tested, of_test)


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
    modules: Sequence[str],
    *,
    use_rslora: bool = False,
) -> peft.PeftModel:
    """Add a fresh adapter of the modules of these names, initialized from torch's random numbers."""
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=cast(int, alpha),  # PEFT only divides it
        lora_dropout=dropout,
        target_modules=list(modules),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        use_rslora=use_rslora,
    )
    config._register_custom_module({nn.Linear: LoraLinear})  # pyright: ignore[reportPrivateUsage]
    return cast(peft.PeftModel, peft.get_peft_model(base, config))


def linear_modules(base: PreTrainedModel, shapes: Shapes) -> list[str]:
    """Return the full names of the decoder's linear layers that adapters are trained and served for.

    Args:
        base: the loaded base model.
        shapes: its weights' shapes by module, as `app.models.adapters.validation.module_shapes` reads them.

    Raises:
        UnsupportedBaseError: the base has none.
    """
    decoder = cast(nn.Module, cast(Any, base).get_decoder())
    inside = {id(module) for module in decoder.modules()}
    servable = adapted(shapes)
    modules = cast(Iterator[tuple[str, nn.Module]], nn.Module.named_modules(base))
    linear = [
        name
        for name, module in modules
        if isinstance(module, nn.Linear | Conv1D) and id(module) in inside and name in servable
    ]
    if not linear:
        raise UnsupportedBaseError("it has no linear layers that an adapter could be added to")
    return linear


def module_names(base: PreTrainedModel) -> list[str]:
    """Return the full names of all modules, those outside of the decoder (a vision tower) included."""
    return [name for name, _ in cast(Iterator[tuple[str, nn.Module]], nn.Module.named_modules(base))]


def set_training(model: nn.Module, *, is_training: bool) -> None:
    """Switch the adapter's dropout on or off. The frozen base always computes as it does when served.

    In training mode some architectures apply a dropout of their own, or call kernels that read a layer's
    weights without calling the layer, and so without its adapter (Mamba's, for the output projection).
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, lora.LoraLayer):
            cast(nn.Module, module.lora_dropout).train(is_training)


def load_weights(model: peft.PeftModel, folder: Path) -> None:
    """Replace the model's adapter weights with a saved adapter's."""
    tensors = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    cast(Any, peft).set_peft_model_state_dict(model, tensors)


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
