"""What vLLM serves with LoRA: which architectures, and which of a base model's linear modules.

Written by hand from the classes that vLLM 0.32 registers (`vllm.model_executor.models.registry`). A test
holds it against the installed vLLM, so that it cannot fall behind. docs/bases.md says what was tried.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from app.models.quantized_checkpoints import quantization_refusal

WITH_LORA = frozenset(
    """
    AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM AXK1ForCausalLM BailingMoeForCausalLM
    BailingMoeV2ForCausalLM ChatGLMForConditionalGeneration ChatGLMModel Cohere2ForCausalLM
    CohereForCausalLM CwmForCausalLM DeciLMForCausalLM DeepseekForCausalLM DeepseekV2ForCausalLM
    DeepseekV32ForCausalLM DeepseekV3ForCausalLM Ernie4_5_MoeForCausalLM Ernie4_5ForCausalLM
    Exaone4ForCausalLM ExaoneForCausalLM ExaoneMoeForCausalLM ExaoneMoEForCausalLM FalconH1ForCausalLM
    FlexOlmoForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma4ForCausalLM GemmaForCausalLM
    Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM GlmForCausalLM GlmMoeDsaForCausalLM
    GPTBigCodeForCausalLM GPTNeoXForCausalLM GptOssForCausalLM GraniteForCausalLM GraniteMoeForCausalLM
    GraniteMoeHybridForCausalLM GraniteMoeSharedForCausalLM GraniteMoeSWAForCausalLM GraniteSWAForCausalLM
    HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM HyperCLOVAXForCausalLM HYV3ForCausalLM HYV4ForCausalLM
    InklingForCausalLM InternLM2ForCausalLM InternLM3ForCausalLM IQuestCoderForCausalLM Jais2ForCausalLM
    JambaForCausalLM K2HorizonForCausalLM LagunaForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM
    Llama4ForCausalLM LLaMAForCausalLM LlamaForCausalLM LongcatFlashForCausalLM LongcatFlashNgramForCausalLM
    MellumForCausalLM MiMoForCausalLM MiniCPM3ForCausalLM MiniCPMForCausalLM MiniMaxM2ForCausalLM
    Ministral3ForCausalLM MistralForCausalLM MistralLarge3ForCausalLM MixtralForCausalLM
    MuseGlimmerForCausalLM NanbeigeForCausalLM NemotronForCausalLM NemotronHForCausalLM
    NemotronHPuzzleForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM OlmoeForCausalLM OlmoForCausalLM
    OlmoHybridForCausalLM OPTForCausalLM PanguEmbeddedForCausalLM PanguProMoEV2ForCausalLM
    PanguUltraMoEForCausalLM Param2MoEForCausalLM Phi3ForCausalLM PhiForCausalLM PhiMoEForCausalLM
    Plamo3ForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM
    Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM Qwen4ExpForCausalLM Rnj1ForCausalLM
    SarvamMLAForCausalLM SarvamMoEForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM SolarForCausalLM
    Starcoder2ForCausalLM TeleChat2ForCausalLM TeleChat3ForCausalLM TeleFLMForCausalLM VaultGemmaForCausalLM
    """.split()  # noqa: SIM905 - a hundred names, one a line, are no easier to read
)
"""The architectures of text models that vLLM serves with LoRA, by classes of its own or by transformers'."""

_EXPERT = re.compile(r"\.experts\.\d+\.")
_ROUTING = re.compile(r"\.experts\.|router|\.(gate|shared_expert_gate)$")
_BYPASSED = re.compile(r"\.kv_b_proj$|\.(mamba|mixer)\.out_proj$")
"""Weights that are read without their module, so that an adapter of it is lost: multi-head latent attention
multiplies the first into others, and Mamba's kernels in transformers take the second (PEFT refuses it)."""


def refusal(folder: Path) -> str | None:
    """Return why adapters of the base model in this folder could not be trained or served, and what to do.

    None if they can be, or if the base model is not prepared here. A job on such a base is refused before it
    begins.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        return None
    config = cast(dict[str, Any], json.loads(config_file.read_text("utf-8")))
    names = cast(list[str], config.get("architectures") or [])
    if any(name in WITH_LORA for name in names):
        return quantization_refusal(folder)
    shown = ", ".join(names)[:200] or "unknown"
    return (
        f"its architecture ({shown}) cannot be served with LoRA adapters by vLLM. Choose a base model of "
        "another architecture: docs/bases.md lists those that were tried"
    )


def adapted(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """Return those of a base model's weights, by module, that adapters are trained and served for.

    These are not: experts and their routers; in bases whose checkpoints name every expert's projections,
    modules of the same name, which PEFT would take for the experts'
    (`peft.utils.transformers_weight_conversion`); and modules whose weights are used without them.
    """
    of_experts = {module.rpartition(".")[2] for module in shapes if _EXPERT.search(module)}
    return {
        module: shape
        for module, shape in shapes.items()
        if len(shape) == 2
        and module.rpartition(".")[2] not in of_experts
        and not _ROUTING.search(module)
        and not _BYPASSED.search(module)
    }


def has_experts(modules: Iterable[str]) -> bool:
    """Return whether a base model with these weights is a mixture of experts."""
    return any(_ROUTING.search(module) for module in modules)
