"""A model whose files are damaged, from the first request to the repair, with the real engine."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI

from app.models.adapters.validation import module_shapes
from app.models.serving_support import adapted
from tests.support.deployment import Deployment, descendants
from tests.support.peft_folder import tensors, write_adapter
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until

SOUP: Any = [{"role": "user", "content": "Soup?"}]


def imported(deployment: Deployment, folder: Path) -> tuple[str, Path]:
    """Its name, and the file of its weights in the storage."""
    done = deployment.toque("adapters", "import", str(folder), "--base-model", BASE_MODEL, "--json")
    assert done.returncode == 0, done.stderr
    name: str = json.loads(done.stdout)["id"]
    storage = Path(deployment.environment["TOQUE_DATA_DIR"]) / "storage"
    return name, storage / "adapters" / name.rpartition(":")[2] / "adapter_model.safetensors"


def test_from_the_first_request_to_the_repair(
    deployment: Deployment, client: OpenAI, base_models_dir: Path, tmp_path: Path
) -> None:
    shapes = module_shapes(base_models_dir / BASE_MODEL)
    some = {name: shape for name, shape in shapes.items() if ".layers.3." in name}
    folder = write_adapter(tmp_path / "mine", tensors(some))
    good, _ = imported(deployment, folder)
    [engine] = [each for each in descendants(deployment) if "workers.inference.engine" in each.cmdline()]
    engine.suspend()  # it would ask the adapter for an answer, and so load it before it is damaged
    bad, weights = imported(deployment, folder)
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    engine.resume()

    for stream in (True, False):
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model=bad, messages=SOUP, max_tokens=4, stream=stream)
        assert (caught.value.status_code, caught.value.code) == (424, "model_quarantined")
        assert "its header describes" in caught.value.message
    for other in (good, BASE_MODEL):
        assert client.chat.completions.create(model=other, messages=SOUP, max_tokens=4).choices

    assert deployment.toque("adapters", "check", bad).returncode == 1
    weights.write_bytes(content)
    assert deployment.toque("adapters", "check", bad).returncode == 0
    answers = {
        client.chat.completions.create(model=name, messages=SOUP, max_tokens=4, temperature=0)
        .choices[0]
        .message.content
        for name in (bad, good)
    }
    assert len(answers) == 1, "they have the same weights"

    def in_memory() -> set[str]:
        [row] = json.loads(deployment.toque("engines", "--json").stdout)
        return set(row["adapters"])

    wait_until(lambda: {bad, good} <= in_memory(), "the engine reports both")


def test_the_largest_weights_that_are_accepted_still_answer(
    deployment: Deployment, client: OpenAI, base_models_dir: Path, tmp_path: Path
) -> None:
    """In every module; with larger ones, activations leave bfloat16's range, and nothing is answered."""
    weights = tensors(adapted(module_shapes(base_models_dir / BASE_MODEL)))
    enormous = {name: tensor.sign() * 9999 for name, tensor in weights.items()}
    folder = write_adapter(tmp_path / "enormous", enormous, lora_alpha=4)
    refused = deployment.toque("adapters", "import", str(folder), "--base-model", BASE_MODEL)
    assert refused.returncode != 0
    assert "enormous" in refused.stderr
    large = {name: tensor.sign() * 100 for name, tensor in weights.items()}
    name, _ = imported(deployment, write_adapter(tmp_path / "large", large, lora_alpha=4))
    for model in (name, BASE_MODEL):
        answer = client.chat.completions.create(model=model, messages=SOUP, max_tokens=4, logprobs=True)
        assert answer.usage and answer.usage.completion_tokens
        assert answer.choices[0].logprobs and answer.choices[0].logprobs.content
        assert all(math.isfinite(token.logprob) for token in answer.choices[0].logprobs.content)


def test_an_adapter_that_answers_nothing_is_quarantined_by_the_engine(
    deployment: Deployment, client: OpenAI, base_models_dir: Path, tmp_path: Path
) -> None:
    """Each number is small enough, but they all point the same way: every token is as likely as any other."""
    weights = tensors(adapted(module_shapes(base_models_dir / BASE_MODEL)))
    same = {name: torch.full_like(tensor, 100.0) for name, tensor in weights.items()}
    empty, _ = imported(deployment, write_adapter(tmp_path / "empty", same, lora_alpha=4))
    small = {name: tensor * 0.02 for name, tensor in weights.items()}
    good, _ = imported(deployment, write_adapter(tmp_path / "good", small, lora_alpha=4))

    def reason(name: str) -> str | None:
        return (client.models.retrieve(name).model_extra or {})["quarantine_reason"]

    found: str = wait_until(lambda: reason(empty), "it is quarantined", seconds=120)
    assert "No token is likely" in found
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=empty, messages=SOUP, max_tokens=4)
    assert (caught.value.status_code, caught.value.code) == (424, "model_quarantined")
    for model in (good, BASE_MODEL):
        assert client.chat.completions.create(model=model, messages=SOUP, max_tokens=4).choices
    assert reason(good) is None
