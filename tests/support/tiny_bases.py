"""Every family of base models that is tested, each as a tiny model with random weights.

The layers, their order and their special features are the family's own; only the sizes are small. Heads are
32 or 64 wide, those of linear attention 128, so that vLLM can serve them on a CPU. Weights are large
(`initializer_range` 0.3), so that what a token attends to changes its prediction by whole nats. Windows are
shorter than most examples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.tiny_model import VOCABULARY, write_tokenizer

WINDOW = 16


@dataclass(frozen=True)
class Family:
    """A family of models: its configuration's class in transformers, and what differs from `COMMON`."""

    config: str
    changes: dict[str, Any] = field(default_factory=dict[str, Any])


COMMON: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_WINDOWS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_DELTA_NET = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_chunk_size": 16}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 150_000.0,
    "factor": 2.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 1024,
}
# Heads as wide as a share of the hidden state, for configurations without `head_dim`.
_TWO_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": None}

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaConfig"),
    "qwen2": Family("Qwen2Config", _TWO_HEADS),
    "qwen3": Family("Qwen3Config"),
    "gemma": Family("GemmaConfig"),
    "phi3": Family("Phi3Config", _TWO_HEADS),
    "smollm3": Family("SmolLM3Config", {**_TWO_HEADS, "no_rope_layer_interval": 2}),
    "olmo2": Family("Olmo2Config", _TWO_HEADS),
    "granite": Family(
        "GraniteConfig",
        {
            **_TWO_HEADS,
            "embedding_multiplier": 2.0,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
    ),
    "glm4": Family("Glm4Config"),
    "ernie4_5": Family("Ernie4_5Config"),
    "seed_oss": Family("SeedOssConfig"),
    "hunyuan_v1_dense": Family("HunYuanDenseV1Config"),
    "qwen3_moe": Family("Qwen3MoeConfig", _EXPERTS),
    "mixtral": Family("MixtralConfig", _LOCAL_EXPERTS),
    "qwen3_next": Family(
        "Qwen3NextConfig", {**_EXPERTS, **_DELTA_NET, "shared_expert_intermediate_size": 32}
    ),
    "mistral": Family("MistralConfig", {"sliding_window": WINDOW}),
    "gemma2": Family(
        "Gemma2Config",
        {
            **_WINDOWS,
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
        },
    ),
    "gemma3": Family("Gemma3TextConfig", {**_WINDOWS, "query_pre_attn_scalar": 32}),
    "gpt_oss": Family("GptOssConfig", {**_LOCAL_EXPERTS, **_WINDOWS, "rope_parameters": _YARN}),
    "cohere2": Family("Cohere2Config", {**_TWO_HEADS, **_WINDOWS, "logit_scale": 0.25}),
    "gpt2": Family(
        "GPT2Config",
        {"num_attention_heads": 2, "num_key_value_heads": None, "head_dim": None, "intermediate_size": None},
    ),
    "lfm2": Family(
        "Lfm2Config",
        {
            **_TWO_HEADS,
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "block_dim": 64,
            "conv_dim": 64,
        },
    ),
    "falcon_h1": Family("FalconH1Config", {**_MAMBA, "mamba_d_ssm": 128, "key_multiplier": 0.5}),
    "granitemoehybrid": Family(
        "GraniteMoeHybridConfig",
        {
            **_TWO_HEADS,
            **_LOCAL_EXPERTS,
            **_MAMBA,
            "layer_types": ["linear_attention", "full_attention"],
            "shared_intermediate_size": 32,
            "logits_scaling": 4.0,
            "attention_multiplier": 0.2,
        },
    ),
    "deepseek_v3": Family(
        "DeepseekV3Config",
        {
            "num_key_value_heads": 4,
            "head_dim": None,
            "q_lora_rank": 32,
            # The only sizes that vLLM's CPU kernels have.
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "first_k_dense_replace": 1,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "qwen3_5": Family("Qwen3_5TextConfig", _DELTA_NET),
}


def write_tiny_base(family: str, folder: Path) -> Path:
    """Write the family's model with random weights, the same every time, and return its folder."""
    import torch
    import transformers

    wanted = COMMON | FAMILIES[family].changes
    fields = {name: value for name, value in wanted.items() if value is not None}
    config = getattr(transformers, FAMILIES[family].config)(**fields)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return write_tokenizer(folder)
