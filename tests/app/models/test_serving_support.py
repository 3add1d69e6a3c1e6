"""What vLLM serves with LoRA, against the installed vLLM and small checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from app.models.serving_support import WITH_LORA, adapted, has_experts, refusal

ASK_VLLM = """
import importlib, json, warnings
warnings.filterwarnings("ignore")
from vllm.model_executor.models import registry
from vllm.model_executor.models.interfaces import supports_lora

found = {}
for table in (registry._TEXT_GENERATION_MODELS, registry._TRANSFORMERS_SUPPORTED_MODELS):
    for name, (module, model) in table.items():
        where = module if module.startswith("vllm.") else f"vllm.model_executor.models.{module}"
        found[name] = supports_lora(getattr(importlib.import_module(where), model))
print(json.dumps(found))
"""


def test_it_says_of_every_text_model_what_the_installed_vllm_says() -> None:
    answer = subprocess.run([sys.executable, "-c", ASK_VLLM], capture_output=True, text=True, check=True)
    found: dict[str, bool] = json.loads(answer.stdout.splitlines()[-1])
    texts = {name for name in found if name.endswith(("ForCausalLM", "LMHeadModel"))}
    assert len(texts) > 120
    assert texts & WITH_LORA == {name for name in texts if found[name]}
    # The only text models with other names.
    assert WITH_LORA - texts == {"ChatGLMModel", "ChatGLMForConditionalGeneration"}


def write_config(folder: Path, *architectures: str) -> Path:
    (folder / "config.json").write_text(json.dumps({"architectures": architectures}))
    return folder


def test_an_architecture_without_lora_is_refused_by_name(tmp_path: Path) -> None:
    assert refusal(tmp_path) is None, "nothing is known of a base that is not here"
    assert refusal(write_config(tmp_path, "LlamaForCausalLM")) is None
    for name in ("GPT2LMHeadModel", "MambaForCausalLM", "SoupForCausalLM"):
        reason = refusal(write_config(tmp_path, name))
        assert reason is not None
        assert name in reason
    assert "unknown" in (refusal(write_config(tmp_path)) or "")


def test_a_checkpoint_that_is_quantized_already_is_refused_by_name(tmp_path: Path) -> None:
    def reason(**config: object) -> str | None:
        whole = {"architectures": ["LlamaForCausalLM"], **config}
        (tmp_path / "config.json").write_text(json.dumps(whole))
        return refusal(tmp_path)

    for method in ("fp8", "bitsandbytes", "compressed-tensors", "gptq"):
        assert f"quantized already ({method})" in (reason(quantization_config={"quant_method": method}) or "")
    of_the_language_model = {"quantization_config": {"quant_method": "awq"}}
    assert "quantized already (awq)" in (reason(text_config=of_the_language_model) or "")
    assert "an unknown method" in (reason(quantization_config={"load_in_4bit": True}) or "")
    assert reason(quantization_config={"quant_method": "mxfp4"}) is None
    assert reason(quantization_config=None) is None


def test_neither_experts_nor_what_peft_takes_for_them_is_adapted() -> None:
    shapes = {
        "model.layers.0.self_attn.q_proj": [8, 8],
        "model.layers.0.mlp.gate": [4, 8],
        "model.layers.0.mlp.experts.0.up_proj": [4, 8],
        "model.layers.0.mlp.shared_expert.up_proj": [4, 8],
        "model.layers.0.mlp.shared_expert_gate": [1, 8],
        "model.layers.0.linear_attn.conv1d": [8, 1, 4],
        "model.layers.0.linear_attn.out_proj": [8, 8],
    }
    assert list(adapted(shapes)) == ["model.layers.0.self_attn.q_proj", "model.layers.0.linear_attn.out_proj"]
    assert has_experts(shapes)
    dense = {"model.layers.0.mlp.up_proj": [4, 8], "model.layers.0.mlp.gate_proj": [4, 8]}
    assert (adapted(dense), has_experts(dense)) == (dense, False)
