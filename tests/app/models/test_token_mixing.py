"""The layout that a base's configuration and its longest example ask for."""

from __future__ import annotations

from typing import Any

import pytest

from app.models.token_mixing import Layout, token_mixing

PLAIN = "the base model mixes tokens by causal attention alone"


@pytest.mark.parametrize(
    ("config", "layout", "reason"),
    [
        ({"model_type": "llama"}, "packed", PLAIN),
        ({"model_type": "smollm3", "layer_types": ["full_attention"] * 4}, "packed", PLAIN),
        ({"model_type": "mistral", "sliding_window": 4096}, "packed", PLAIN),
        ({"model_type": "mistral", "sliding_window": None}, "packed", PLAIN),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False}, "packed", PLAIN),
        ({"model_type": "mistral", "sliding_window": 100}, "packed", PLAIN),
        (
            {"model_type": "mistral", "sliding_window": 99},
            "padded",
            "the base model's attention window of 99 tokens is shorter than the longest example (100 tokens)",
        ),
        (
            {"model_type": "gemma2", "sliding_window": 4096, "attn_logit_softcapping": 50.0},
            "padded",
            "the base model caps its attention scores",
        ),
        (
            {"model_type": "gpt_oss", "sliding_window": 128},
            "padded",
            "the base model's attention has sinks",
        ),
        (
            {"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]},
            "padded",
            "the base model's layers mix tokens by linear attention",
        ),
        (
            {"model_type": "llama", "layer_types": ["conv", "chunked_attention"]},
            "padded",
            "the base model's layers mix tokens by chunked attention and conv",
        ),
        (
            {"model_type": "falcon_h1", "mamba_d_conv": 4},
            "padded",
            "the base model's layers mix tokens by a state space",
        ),
        (
            {"model_type": "of-tomorrow"},
            "padded",
            "'of-tomorrow' is not known to mix tokens by causal attention alone",
        ),
    ],
)
def test_the_layout_and_its_reason(config: dict[str, Any], layout: Layout, reason: str) -> None:
    mixing = token_mixing(config, longest=100)
    assert (mixing.layout, mixing.reason) == (layout, reason)
