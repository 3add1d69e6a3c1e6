"""The shape of a base model, and what computing with it costs: operations, and bytes of memory.

Everything is derived from the shapes of its weights, which every architecture has, and from the few numbers
of its configuration that shapes do not show. The costs were fitted to jobs of Llama-like models; layers that
mix tokens in other ways are counted by their weights alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from app.fine_tuning.packing import Work
from app.models.adapters.target_modules import select
from app.models.adapters.validation import module_shapes
from app.models.adapters.weights import read_tensors
from app.models.quantized_checkpoints import unpacked_parameters
from app.models.token_mixing import SINKS, has_soft_cap, read_config

# Costs beyond the model's matrix products, in operations that would take as long. They were fitted to jobs of
# many shapes on CPUs (`make bench-estimates` shows how well), and are assumed to be the same on a GPU.
_SCORE_COST = 1.1
"""A factor: attention is small products and much exponentiation."""
_LOGIT_COST = 2.6
"""A factor: softmax, its gradient and the most likely token, over the whole vocabulary."""
_MICRO_BATCH_COST = 25e9
"""Launching every operation of a pass, and reading the weights for it."""
_STEP_COST = 2e9
"""Gradient clipping, the optimizer, and recording the step."""
_CHECKPOINT_COST = 10e9
_FORWARD_SHARE = 0.7
"""The cost of a forward pass alone, as a share of a whole step's."""

_ADAPTER_BYTES = 16
"""Bytes per trainable parameter: itself, its gradient and Adam's two moments, in fp32."""
# The shares of activations and logits that a CPU process holds at its peak, measured at 400 to 1,500 tokens
# per micro-batch. A GPU's allocator holds exactly what is needed.
_HELD_ACTIVATIONS = 0.87
"""Less than all of them: some are freed before the last is computed."""
_HELD_LOGITS = 1.35
_SCRATCH_BYTES = 220 * 2**20
"""What every job needs beside: temporary gradients, and heap fragmentation."""
_SAVING_BYTES = 24
"""Bytes per trainable parameter while a checkpoint is assembled; no activations are held at that time."""
_EXAMPLE_TOKEN_BYTES = 50
"""Bytes per token of an example in Python objects: its id, and whether it is a target."""

_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4: four bits, a byte for every 64 of them, and four for every 256 of those bytes."""

_LEAST_PACKED = 0.5
"""The least share of weights that are worth packing: with less, the base still takes 0.6 of its memory."""

_EXPERT = re.compile(r"\.experts\.|_moe\.(input|output)_linear")
_NO_LINEAR_LAYER = re.compile(r"\b(wpe|gate|shared_expert_gate|router|router\.layer)$")
"""Embedded positions and the routers of experts, which are matrices, too, but get no adapter."""
_ATTENTION = re.compile(r"\b(q_proj|k_proj|v_proj|qkv_proj|c_attn)$")


@dataclass(frozen=True, slots=True)
class Geometry:
    """The shape of a base model."""

    hidden: int
    layers: int
    attention_layers: int
    """Those of the layers that compute attention scores."""
    queries: int
    """The width of a layer's queries, all heads together."""
    kept_scores: int
    """The heads whose attention scores are kept for the backward pass; 0 where they are computed again."""
    keys: int
    """The width of a layer's keys, all heads together."""
    vocabulary: int
    parameters: int
    """The number of all its weights."""
    linear: Mapping[str, tuple[int, int]]
    """The linear layers that can be adapted and quantized, and the two widths of each."""
    experts: int
    """The number of all experts' weights."""
    active: float
    """The share of its experts that a token passes through."""

    @classmethod
    def load(cls, folder: Path) -> Geometry:
        """Read the shape of a prepared base model from its folder."""
        parameters: dict[str, int] = {}
        for path in folder.glob("*.safetensors"):
            with path.open("rb") as file:
                stored = {name: math.prod(tensor.shape) for name, tensor in read_tensors(file).items()}
            parameters |= {name: unpacked_parameters(name, number) for name, number in stored.items()}
        return cls.of(
            read_config(folder),
            parameters=sum(parameters.values()),
            experts=sum(number for name, number in parameters.items() if _EXPERT.search(name)),
            linear={
                name: (shape[1], shape[0])
                for name, shape in module_shapes(folder).items()
                if len(shape) == 2 and not _EXPERT.search(name) and not _NO_LINEAR_LAYER.search(name)
            },
        )

    @classmethod
    def of(
        cls,
        fields: dict[str, Any],
        *,
        parameters: int,
        experts: int,
        linear: Mapping[str, tuple[int, int]],
    ) -> Geometry:
        """Return the shape of a base model with this configuration.

        Args:
            fields: its language model's configuration, as `read_config` returns it.
            parameters: the number of all its weights.
            experts: the number of its experts' weights.
            linear: the two widths of each of its linear layers.
        """
        config = _Config(fields)
        hidden, heads = config.number("hidden_size", "n_embd"), config.number("num_attention_heads", "n_head")
        width = config.number("head_dim") or hidden // max(1, heads)
        if latent := config.number("qk_nope_head_dim"):  # multi-head latent attention
            width = latent + config.number("qk_rope_head_dim")
        layers = config.number("num_hidden_layers", "n_layer")
        kinds = [kind for kind in config.layer_types if "attention" in kind and "linear" not in kind]
        of_layer = config.number("num_experts", "num_local_experts", "n_routed_experts")
        return cls(
            hidden=hidden,
            layers=layers,
            attention_layers=len(kinds) if config.layer_types else layers,
            queries=heads * width,
            # Eager attention keeps them, which transformers computes soft caps and sinks by.
            kept_scores=heads if has_soft_cap(fields) or fields.get("model_type") in SINKS else 0,
            keys=(config.number("num_key_value_heads") or heads) * width,
            vocabulary=config.number("vocab_size"),
            parameters=parameters,
            linear=linear,
            experts=experts,
            active=min(1.0, config.number("num_experts_per_tok") / max(1, of_layer)),
        )

    def trainable(self, rank: int, target_modules: str | Sequence[str] = "all-linear") -> int:
        """The number of parameters of an adapter."""
        return rank * sum(sum(self.linear[name]) for name in select(self.linear, target_modules))

    @property
    def _linear_parameters(self) -> int:
        return sum(width_in * width_out for width_in, width_out in self.linear.values())

    @property
    def unpackable(self) -> str | None:
        """Why its linear layers cannot be stored in NF4, or should not be; None if they can."""
        for name, (width_in, width_out) in self.linear.items():
            if width_in * width_out % 4:
                return f"the weight of {name}, {width_out} x {width_in}, is not a multiple of 4"
        share = self._linear_parameters / self.parameters
        if share < _LEAST_PACKED:
            others = (
                "most are those of experts" if self.experts > self.parameters / 2 else "most are embeddings"
            )
            return (
                f"only {share:.0%} of its weights are in linear layers, which alone can be packed; {others}"
            )
        return None

    def base_bytes(self, value_bytes: int, quantization: str | None) -> int:
        """The bytes of its weights in memory."""
        packed = self._linear_parameters if quantization == "nf4" else 0
        return int(packed * _NF4_BYTES + (self.parameters - packed) * value_bytes)

    def cost(self, work: Work, trainable: int) -> float:
        """The cost of the work in floating-point operations, or in as many as take as long."""
        parameters = self._linear_parameters + self.active * self.experts
        # Two products through frozen weights (forward and backward), three through the adapter's.
        token = 4 * parameters + 6 * trainable
        score = 14 * self.attention_layers * self.queries * _SCORE_COST
        logits = 4 * self.hidden * self.vocabulary * _LOGIT_COST
        return (
            work.tokens * token
            + work.recomputed * (2 * parameters + 2 * trainable)
            + work.scores * score
            + work.targets * logits
            + work.micro_batches * _MICRO_BATCH_COST
            + work.steps * _STEP_COST
            + work.checkpoints * _CHECKPOINT_COST
        )

    def job_cost(self, training: Work, evaluation: Work, trainable: int) -> float:
        """The cost of a job's optimizer steps and of its evaluations."""
        return self.cost(training, trainable) + _FORWARD_SHARE * self.cost(evaluation, trainable)

    def held_bytes(self, micro_batch: Work, trainable: int, value_bytes: int, *, is_gpu: bool) -> int:
        """The bytes held at the peak of a step on that micro-batch, or while a checkpoint is assembled."""
        activations = self._activation_bytes(micro_batch, value_bytes)
        # As computed, in fp32, and their softmax.
        logits = int(micro_batch.targets * self.vocabulary * (value_bytes + 8))
        saving = _SAVING_BYTES * trainable
        if is_gpu:
            return max(activations + logits, saving)
        return _SCRATCH_BYTES + max(int(_HELD_ACTIVATIONS * activations + _HELD_LOGITS * logits), saving)

    def _activation_bytes(self, micro_batch: Work, value_bytes: int) -> int:
        """The activations that one forward pass keeps for its backward pass."""
        # Per token and layer: the residual stream and its norms; queries, keys and values, before and after
        # rotation and gathered per sequence; attention's output; the MLP's four inner states; the low ranks.
        of_attention = self.attention_layers * (4 * self.queries + 6 * self.keys)
        per_token = 6 * self.layers * self.hidden + of_attention + 2 * self._inner
        per_row = self.attention_layers * (3 * self.queries + 2 * self.keys)
        every = value_bytes * (per_token * micro_batch.tokens + per_row * micro_batch.rows)
        # Scores, their softmax in fp32, and that as a value.
        scores = self.attention_layers * self.kept_scores * micro_batch.scores
        every += scores * (4 + 2 * value_bytes)
        if not micro_batch.recomputed:
            return int(every)
        # Each layer's input, and everything in the one layer that is being recomputed.
        return int(value_bytes * self.layers * self.hidden * micro_batch.tokens + every / max(1, self.layers))

    @property
    def _inner(self) -> float:
        """The widths that tokens are projected to, apart from attention's: the MLPs', mostly."""
        outward = sum(
            width_out
            for name, (width_in, width_out) in self.linear.items()
            if width_in == self.hidden and width_out != self.hidden and not _ATTENTION.search(name)
        )
        # An expert is two projections to its inner width, and one back.
        return outward + 2 * self.active * self.experts / (3 * max(1, self.hidden))


class _Config:
    """A configuration's numbers, which some architectures have under other names."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def number(self, *names: str) -> int:
        """The first of the fields that is there; 0 if none is."""
        found = (self._fields.get(name) for name in names)
        return next((value for value in found if isinstance(value, int)), 0)

    @property
    def layer_types(self) -> list[str]:
        """The kind of each layer, where they differ."""
        kinds = self._fields.get("layer_types")
        return cast(list[str], kinds) if isinstance(kinds, list) else []


def adapter_bytes(trainable: int) -> int:
    """The bytes of an adapter, its gradient and the optimizer's state."""
    return _ADAPTER_BYTES * trainable


def example_bytes(tokens: int, *, is_gpu: bool) -> int:
    """The bytes of all examples, which are on the CPU."""
    return 0 if is_gpu else _EXAMPLE_TOKEN_BYTES * tokens
