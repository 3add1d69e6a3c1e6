"""How much memory a base model needs to be trained and served, and whether a machine has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.base_models.known import KnownBaseModel
from app.core.settings import BaseModelEntry, Settings
from app.fine_tuning.geometry import Geometry, adapter_bytes
from app.fine_tuning.packing import Limits, Work
from app.fine_tuning.precision import cpu_has_bf16

_GPU_SHARE = 0.5
_GPU_SHARE_IN_TURNS = 0.9
_CPU_SHARE = 0.5
"""The share of a machine's memory that all engines may take where they have no GPU."""
_GPU_OVERHEAD_BYTES = 3 * 2**29
"""What vLLM takes on a GPU beside weights and cache: activations, graphs, adapters."""


_CPU_OVERHEAD_BYTES = 23 * 10**8
"""What vLLM takes on a CPU beside weights and cache, measured with the demo's base: 3.6 GB in all."""
_TRAINER_BYTES = {"cuda": 1 * 2**30, "cpu": 600 * 2**20}
"""What Python, torch and transformers take beside the model: on the GPU, CUDA's own memory."""
_RANK = 16
"""The LoRA rank that training is estimated for."""


@dataclass(frozen=True, slots=True)
class Needs:
    """The memory that a base model needs, in bytes."""

    training: int
    training_nf4: int
    serving: int


def needs(known: KnownBaseModel, settings: Settings, *, is_gpu: bool) -> Needs:
    """Estimate what a base model needs on a device of that kind.

    Training is a job of rank 16 on examples that are as long as the context, their activations computed again
    in the backward pass. Serving is the weights and a cache that holds one request of full length, or what
    the settings reserve.
    """
    geometry = known.geometry
    weights = geometry.base_bytes(2, None)
    tokens = known.context * cache_bytes_per_token(known.config)
    cache = tokens if is_gpu else max(tokens, cache_bytes(settings, None, weights))
    return Needs(
        training=_training_bytes(geometry, known.context, None, is_gpu=is_gpu),
        training_nf4=_training_bytes(geometry, known.context, "nf4", is_gpu=is_gpu),
        serving=weights + cache + (_GPU_OVERHEAD_BYTES if is_gpu else _CPU_OVERHEAD_BYTES),
    )


def _training_bytes(geometry: Geometry, tokens: int, quantization: str | None, *, is_gpu: bool) -> int:
    targets = Limits.of_device(is_gpu=is_gpu, vocabulary=geometry.vocabulary).targets
    work = Work(tokens=tokens, rows=tokens, scores=tokens * tokens, targets=targets, recomputed=tokens)
    value_bytes = 2 if is_gpu or cpu_has_bf16() else 4
    trainable = geometry.trainable(_RANK)
    return (
        _TRAINER_BYTES["cuda" if is_gpu else "cpu"]
        + geometry.base_bytes(value_bytes, quantization)
        + adapter_bytes(trainable)
        + geometry.held_bytes(work, trainable, value_bytes, is_gpu=is_gpu)
    )


def engine_gpu_share(settings: Settings) -> float:
    """Return the share of a GPU's memory that an engine takes.

    The rest is for a trainer that may run on the same GPU at the same time, unless the two take turns.
    """
    return _GPU_SHARE_IN_TURNS if settings.shared_device else _GPU_SHARE


def engine_bytes(settings: Settings, entry: BaseModelEntry, gpu_bytes: int | None) -> int:
    """Return the memory that the engine of a prepared base model takes; on a GPU, a fixed share of it."""
    if gpu_bytes is not None:
        return int(engine_gpu_share(settings) * gpu_bytes)
    files = settings.base_model_dir(entry).glob("*.safetensors")
    return sum(path.stat().st_size for path in files) + cache_bytes(settings, None, 0) + _CPU_OVERHEAD_BYTES


def memory_for_engines(settings: Settings, gpu_bytes: int | None, memory_bytes: int) -> int:
    """Return what all engines of a machine may take together; the rest is for a trainer and others."""
    if gpu_bytes is not None:
        return int(engine_gpu_share(settings) * gpu_bytes)
    return int(_CPU_SHARE * memory_bytes)


def cache_bytes(settings: Settings, gpu_bytes: int | None, weight_bytes: int) -> int:
    """Return the size of an engine's key/value cache.

    Args:
        settings: those of the deployment.
        gpu_bytes: the GPU's memory; None on a CPU.
        weight_bytes: the size of the base model's weights.
    """
    if gpu_bytes is None:
        return max(1, round(settings.engine_kv_cache_gib)) * 2**30
    return max(0, int(engine_gpu_share(settings) * gpu_bytes) - weight_bytes - _GPU_OVERHEAD_BYTES)


def cache_bytes_per_token(config: dict[str, Any]) -> int:
    """Return the bytes that a token takes in the key/value cache, in bf16.

    Args:
        config: the language model's configuration, as `app.models.token_mixing.read_config` returns it.
    """
    layers: int = config.get("num_hidden_layers") or config.get("n_layer") or 1
    kinds: list[str] = config.get("layer_types") or []
    if kinds:
        layers = sum("attention" in kind and "linear" not in kind for kind in kinds)
    if latent := config.get("kv_lora_rank"):  # multi-head latent attention keeps one vector for both
        return max(1, 2 * layers * (latent + config.get("qk_rope_head_dim", 0)))
    heads: int = config.get("num_attention_heads") or config.get("n_head") or 1
    hidden: int = config.get("hidden_size") or config.get("n_embd") or 64
    width = config.get("head_dim") or hidden // heads
    return max(1, 2 * 2 * layers * (config.get("num_key_value_heads") or heads) * width)
