"""What is known of base models before they are downloaded, held against transformers and vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.base_models.available import AvailableModel, available_models
from app.base_models.known import KnownBaseModel, find_known, known_base_models
from app.base_models.parsers import REASONING_PARSERS, TOOL_PARSERS
from app.core.settings import Settings
from app.models.catalogue import Catalogue
from app.models.serving_support import WITH_LORA

GIB = 2**30


def by_name(memory_bytes: int, *, is_gpu: bool, **settings: object) -> dict[str, AvailableModel]:
    here = Settings.model_validate({"data_dir": Path("/none")} | settings)
    found = available_models(here, Catalogue(here), memory_bytes, is_gpu=is_gpu)
    return {model.name: model for model in found}


@pytest.mark.parametrize("known", known_base_models(), ids=lambda known: known.name)
def test_a_model_of_this_configuration_has_that_many_weights(known: KnownBaseModel) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(known.config)
    if known.name == "granite-4.0-micro":  # has no mixer but attention, and no experts
        fields |= {"shared_intermediate_size": fields["intermediate_size"], "num_local_experts": 0}
        fields["layer_types"] = ["attention"] * fields["num_hidden_layers"]
    config = AutoConfig.for_model(**fields, pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counted = sum(weight.numel() for weight in model.parameters())
    assert counted == known.parameters
    linear = sum(width_in * width_out for width_in, width_out in known.geometry.linear.values())
    embeddings = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
    assert linear + known.geometry.experts == pytest.approx(counted - embeddings, rel=0.01)


def test_all_can_be_served_with_lora() -> None:
    assert {known.architecture for known in known_base_models()} <= WITH_LORA


def test_the_parsers_are_vllms() -> None:
    registered = (
        "import json; from vllm.reasoning import ReasoningParserManager as R; "
        "from vllm.tool_parsers import ToolParserManager as T; "
        "print(json.dumps([T.list_registered(), R.list_registered()]))"
    )
    done = subprocess.run([sys.executable, "-c", registered], capture_output=True, text=True, check=True)
    tools, reasoning = json.loads(done.stdout.splitlines()[-1])
    assert (frozenset(tools), frozenset(reasoning)) == (TOOL_PARSERS, REASONING_PARSERS)
    assert {known.tool_parser for known in known_base_models()} - {None} <= set(tools)
    assert {known.reasoning_parser for known in known_base_models()} - {None} <= set(reasoning)


def test_names_are_unique_and_entries_valid() -> None:
    names = [known.name for known in known_base_models()]
    assert len(set(names)) == len(names)
    assert all(known.entry.source == known.source for known in known_base_models())
    assert find_known("qwen/qwen3-0.6b") == find_known("qwen3-0.6b") is not None
    assert find_known("gpt-5") is None


def test_what_fits_a_cpu() -> None:
    models = by_name(8 * GIB, is_gpu=False)
    small, large = models["smollm2-360m-instruct"], models["llama-3.1-8b-instruct"]
    assert (small.training.fits, small.serving.fits, large.training.fits, large.serving.fits) == (
        True,
        True,
        False,
        False,
    )
    assert large.gated
    assert large.command == "toque models pull llama-3.1-8b-instruct"
    nf4 = models["qwen3-8b"].training_nf4
    assert nf4 is not None
    assert nf4.needs_bytes < 0.55 * models["qwen3-8b"].training.needs_bytes
    # Most of its weights are embeddings, which are not packed.
    assert models["gemma-3-270m-it"].training_nf4 is None


def test_attention_with_sinks_keeps_its_scores_in_memory() -> None:
    gpt_oss = by_name(80 * GIB, is_gpu=True)["gpt-oss-20b"]
    weights, scores_of_a_layer = 2 * 20_914_757_184, 64 * 8192 * 8192 * (4 + 2 * 2)
    assert gpt_oss.training.needs_bytes > weights + scores_of_a_layer


def test_trainer_and_engine_share_a_gpu() -> None:
    # 16.4 GB of weights are more than half of 24 GiB, unless the two take turns.
    assert not by_name(24 * GIB, is_gpu=True)["qwen3-8b"].serving.fits
    assert by_name(24 * GIB, is_gpu=True, shared_device="gpu0")["qwen3-8b"].serving.fits
    assert not by_name(24 * GIB, is_gpu=True)["qwen3-8b"].training.fits
    assert by_name(24 * GIB, is_gpu=True, shared_device="gpu0")["qwen3-8b"].training.fits


def test_one_that_is_in_the_catalogue_says_so() -> None:
    entry = {"name": "qwen3-0.6b", "source": "Qwen/Qwen3-0.6B"}
    models = by_name(8 * GIB, is_gpu=False, base_models=[entry])
    assert [name for name, model in models.items() if model.in_catalogue] == ["qwen3-0.6b"]
