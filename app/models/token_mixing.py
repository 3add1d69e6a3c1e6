"""How a base model's tokens mix, and which layout of training batches is right for it.

Packing several sequences into one row is right where a token takes from the others by plain causal attention
alone, which the trainer then restricts to the token's own sequence. A convolution, a linear attention or a
state space runs on from one sequence into the next, and a window, a soft cap or a sink changes the attention
that the packed layout computes. Such bases, and all whose architecture is not listed here, are trained with
one sequence a row, padded on the right, through their own attention.

The trainer also compares packed rows with single sequences on the real weights
(`workers.training.layouts.self_test`). Such a test sees short rows of random tokens only, so it may forbid
the packed layout, but it cannot allow it to an architecture that is not listed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Layout = Literal["packed", "padded"]
"""How a micro-batch's sequences are laid out: in one row without padding, or in a padded row each."""

CAUSAL_ATTENTION = frozenset(
    {
        "cohere2",
        "deepseek_v3",
        "ernie4_5",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm4",
        "gpt2",
        "gpt_oss",
        "granite",
        "hunyuan_v1_dense",
        "llama",
        "ministral",
        "mistral",
        "mixtral",
        "olmo2",
        "olmo3",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
    }
)
"""Values of `model_type` whose tokens mix by attention alone, which transformers lets the trainer replace."""

_ATTENTION_LAYERS = {"attention", "full_attention", "sliding_attention"}
_SOFT_CAPS = ("attn_logit_softcapping", "attn_logit_softcap")
SINKS = frozenset({"gpt_oss"})
"""Values of `model_type` whose attention has sinks, which transformers computes only by eager attention."""


@dataclass(frozen=True, slots=True)
class TokenMixing:
    """The layout that a job's batches need."""

    layout: Layout
    reason: str
    """Continues the words "The packed layout is used because"."""


def read_config(folder: Path) -> dict[str, Any]:
    """Read the part of a prepared base's `config.json` that describes its language model."""
    whole: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return whole.get("text_config") or whole


def token_mixing(config: dict[str, Any], longest: int) -> TokenMixing:
    """Choose the layout for a base.

    Args:
        config: its language model's configuration, as `read_config` returns it.
        longest: the number of tokens of the longest sequence that is trained on or validated with.
    """
    obstacle = next(_obstacles(config, longest), None)
    if obstacle is not None:
        return TokenMixing("padded", obstacle)
    return TokenMixing("packed", "the base model mixes tokens by causal attention alone")


def _obstacles(config: dict[str, Any], longest: int) -> Iterator[str]:
    """Yield what makes the packed layout wrong."""
    model_type = config.get("model_type")
    layers = set(config.get("layer_types") or ()) - _ATTENTION_LAYERS
    window = attention_window(config)
    if layers:
        names = " and ".join(sorted(layer.replace("_", " ") for layer in layers))
        yield f"the base model's layers mix tokens by {names}"
    if any(name.startswith("mamba_") for name in config):
        yield "the base model's layers mix tokens by a state space"
    if model_type not in CAUSAL_ATTENTION:
        yield f"'{model_type}' is not known to mix tokens by causal attention alone"
    if has_soft_cap(config):
        yield "the base model caps its attention scores"
    if model_type in SINKS:
        yield "the base model's attention has sinks"
    if window is not None and window < longest:
        yield (
            f"the base model's attention window of {window} tokens is shorter than the longest example "
            f"({longest} tokens)"
        )


def has_soft_cap(config: dict[str, Any]) -> bool:
    """Whether attention scores are capped, which only the eager attention of transformers computes."""
    return any(config.get(name) for name in _SOFT_CAPS)


def attention_window(config: dict[str, Any]) -> int | None:
    """Return the narrowest attention window in tokens, the attending token included; None without one."""
    if config.get("use_sliding_window") is False:
        return None
    window = config.get("sliding_window")
    return window if isinstance(window, int) and window > 0 else None
