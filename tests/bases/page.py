# ruff: noqa: E501 - a page of Markdown, whose lines are 120 wide
"""docs/bases.md, written from what was found."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bases.matrix import OTHER_WINDOWS, Result

EXAMPLES = {
    "llama": "Llama 3.x, SmolLM2, Yi",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3 0.6B to 32B",
    "gemma": "Gemma 1",
    "phi3": "Phi-3, Phi-4-mini",
    "smollm3": "SmolLM3",
    "olmo2": "OLMo 2",
    "granite": "Granite 3.x",
    "glm4": "GLM-4 0414",
    "ernie4_5": "ERNIE 4.5 0.3B",
    "seed_oss": "Seed-OSS",
    "hunyuan_v1_dense": "Hunyuan 0.5B to 7B",
    "qwen3_moe": "Qwen3 30B-A3B",
    "mixtral": "Mixtral",
    "qwen3_next": "Qwen3-Next",
    "mistral": "Mistral 7B",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3 (text)",
    "gpt_oss": "gpt-oss",
    "cohere2": "Command R7B, Command A",
    "gpt2": "GPT-2",
    "lfm2": "LFM2",
    "falcon_h1": "Falcon-H1",
    "granitemoehybrid": "Granite 4",
    "deepseek_v3": "DeepSeek-V3, Moonlight",
    "qwen3_5": "Qwen3.5 (text)",
}

_PAGE = """\
# Base models

Which families of base models are trained and served, as `make test-bases` found it. Each family is a tiny model of its
architecture with random weights. It is trained over HTTP by a deployment that has all of them in its catalogue. The
adapter is downloaded, and its loss on the validation file is computed by transformers and PEFT in fp32; the job's
`full_valid_loss` must be within 0.5 % of it. vLLM's CPU build then computes log-probabilities for the base and two
adapters in one batch, with Toque's LoRA kernels, which are compared with those of transformers and PEFT.

| family | for example | batches | adapted | loss: job, PEFT | served on a CPU | difference, nats | notes |
|---|---|---|---|---|---|---|---|
{rows}

- *batches*: `packed` rows hold many examples, and `padded` ones a single example each. A base gets padded ones where its
  tokens do not mix by plain causal attention alone, such as with windows, sinks, soft caps, linear attention or state
  spaces.
- *adapted*: the modules that `all-linear` means. Routers and experts are never among them: vLLM adapts experts with
  kernels for GPUs only, so what is trained could not be proven here to be what is served. In bases whose checkpoints
  name every expert's projections, modules with the same names (shared experts, and the MLPs of first layers) are left
  out as well, because PEFT takes their adapters for the experts'. `kv_b_proj` and Mamba's `out_proj` are left out
  because their weights are used without the module, in vLLM or in transformers, so that an adapter would be lost.
  That experts are not adapted is said in a job's event when its training starts. Where the API has the base model's
  weights, the job's first event and the model's record (`experts_adapted`) say so, too.
- *difference*: the largest of any token in fp32. Where vLLM's CPU kernels need bf16, it is the mean over all tokens,
  which rounding alone makes about that large.
- What is refused is refused when a job is created or a base model is added, with the architecture's name. Every other
  architecture that vLLM {version} serves with LoRA is accepted, too; its adapters are checked before the first step.
- Llama 4, Gemma 3 from 4B on, Mistral 3 and other bases that also read images are not supported: their checkpoints
  are of another architecture than the text models'.
"""


def render(results: Sequence[Result]) -> str:
    """Return the page."""
    return _PAGE.format(rows="\n".join(_row(result) for result in results), version="0.32")


def _row(result: Result) -> str:
    name = f"{result.family} (`{result.architecture}`)"
    if result.refused:
        cells = ["", "", "", "refused", "", "vLLM serves it without LoRA"]
    else:
        loss = f"{result.loss:.4f}, {result.reference_loss:.4f}" if result.reference_loss else ""
        difference = f"{result.difference:.1g}" if result.difference is not None else ""
        served = "yes" if result.is_served else "no"
        modules = ", ".join(f"`{module}`" for module in result.adapted)
        cells = [result.layout, modules, loss, served, difference, "; ".join(_notes(result))]
    return f"| {name} | {EXAMPLES[result.family]} | {' | '.join(cells)} |"


def _notes(result: Result) -> list[str]:
    notes = [*result.wrong]
    if result.has_experts:
        notes.append("experts are not adapted")
    if result.family in OTHER_WINDOWS:
        notes.append("windows are one token longer in vLLM than in transformers; compared within one")
    if result.dtype != "float32":
        notes.append("in bf16")
    return notes
