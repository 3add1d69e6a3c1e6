"""Every family of bases through the trainer, against plain transformers and PEFT in fp32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from app.datasets.chat_template import ChatTemplate, TokenizedExample
from app.fine_tuning.packing import Limits
from app.models.adapters.validation import AdapterError, check_adapter, module_shapes
from app.models.token_mixing import Layout
from tests.support.examples import chat, colours, lines_of, preference_pairs
from tests.support.gradients import adapter_weights, randomize, with_lora
from tests.support.tiny_bases import FAMILIES, WINDOW, write_tiny_base
from tests.support.trainer import losses, with_
from tests.support.training_loop import train
from workers.training import learning, model
from workers.training.dataset import TrainingExample, load_examples
from workers.training.failure import UntrainableError
from workers.training.layouts import collate, target_logits
from workers.training.model import WarmBase
from workers.training.objectives import CrossEntropyLoss
from workers.training.protocol import Finished, Progress, Started, Step, Stopped, TrainingSpec

WIDE = Limits(tokens=1 << 20, targets=1 << 20)
PACKED = {
    "llama",
    "qwen2",
    "qwen3",
    "gemma",
    "phi3",
    "smollm3",
    "olmo2",
    "granite",
    "glm4",
    "ernie4_5",
    "seed_oss",
    "hunyuan_v1_dense",
    "qwen3_moe",
    "mixtral",
    "gpt2",
    "deepseek_v3",
}
"""The families whose tokens mix by causal attention alone."""
MIXTURES = {"qwen3_moe", "mixtral", "qwen3_next", "gpt_oss", "granitemoehybrid", "deepseek_v3"}
"""The families that have experts."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def base(family: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmBase]:
    """In fp32, so that the order of a sum hardly matters."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "compute_dtype", lambda device: torch.float32)
        yield model.load_warm_base(write_tiny_base(family, tmp_path_factory.mktemp("bases") / family))


@pytest.fixture
def examples(base: WarmBase, tmp_path: Path) -> list[TrainingExample]:
    """Three that begin alike, of different lengths, all longer than the windows of those that have some."""
    path = tmp_path / "three.jsonl"
    path.write_bytes(
        lines_of([*colours(1), chat("that?", "green"), chat("and the other one?", "black, as before")])
    )
    examples = load_examples(path, ChatTemplate.load(base.folder), 1000)
    assert min(example.length for example in examples) > WINDOW
    assert len({example.length for example in examples}) == 3
    return examples


def plain(base: WarmBase, targets: list[str]) -> peft.PeftModel:
    """Transformers and PEFT alone, with the architecture's reference attention."""
    loaded = AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=torch.float32, attn_implementation="eager"
    )
    is_gpt2 = base.model.config.model_type == "gpt2"
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets, fan_in_fan_out=is_gpt2
    )
    return randomize(peft.get_peft_model(loaded, config)).eval()


def alone(reference: torch.nn.Module, sequence: TokenizedExample) -> Tensor:
    """The log-probabilities of the targets of one sequence without any other beside it."""
    ids = torch.tensor([sequence.input_ids])
    learnt = torch.tensor(sequence.target_mask[1:])
    logprobs = reference(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, ids[0, 1:, None])[:, 0][learnt]


def layouts_of(family: str) -> list[Layout]:
    return ["packed", "padded"] if family in PACKED else ["padded"]


def test_logprobs_and_gradients_are_those_of_plain_transformers(
    family: str, base: WarmBase, examples: list[TrainingExample]
) -> None:
    mixing = base.token_mixing(max(example.length for example in examples))
    assert mixing.layout == layouts_of(family)[0], mixing.reason
    targets = model.linear_modules(base.model, module_shapes(base.folder))
    reference = plain(base, targets)
    sequences = [example.sequences for example in examples]
    expected = torch.cat([alone(reference, sequence) for (sequence,) in sequences])
    (-expected.mean()).backward()
    expected = expected.detach()
    gradients = {name: weight.grad for name, weight in adapter_weights(reference).items()}

    for layout in layouts_of(family):
        adapted = randomize(with_lora(base.model, base.folder))
        try:
            weights = adapter_weights(adapted)
            optimizer = torch.optim.SGD(weights.values(), lr=0.0)
            mixed = replace(mixing, layout=layout)
            learner = learning.Learner(base, adapted, mixed, CrossEntropyLoss(), optimizer)
            batch = collate(layout, sequences)
            with torch.no_grad():
                logits = target_logits(base.model, batch)
            actual = logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)

            loss = learner.train_step(examples, 0.0, 1e9, WIDE).mean("loss")
            assert loss == pytest.approx(-float(expected.mean()), abs=1e-4)
            assert weights.keys() == gradients.keys()
            for name, weight in weights.items():
                wanted, found = gradients[name], weight.grad
                assert wanted is not None and found is not None, name
                largest = float(wanted.abs().max())
                assert largest > 0, f"{name} does not enter the forward pass"
                assert float((found - wanted).abs().max()) <= 1e-4 * max(largest, 1.0), name
        finally:
            adapted.unload()


@pytest.fixture
def job(base: WarmBase, spec: TrainingSpec) -> TrainingSpec:
    return with_(
        spec,
        base_model_dir=str(base.folder),
        lora_dropout=0.1,
        n_epochs=4,
        batch_size=10,
        learning_rate=2e-2,
    )


def weights_of(said: list[Any]) -> dict[str, Tensor]:
    assert isinstance(said[-1], Finished)
    return load_file(Path(said[-1].path) / "adapter_model.safetensors")


def check_exported(finished: Progress, base: WarmBase) -> None:
    """The adapter can be served, and says in plain PEFT what it said in the trainer."""
    assert isinstance(finished, Finished)
    check_adapter(Path(finished.path), module_shapes(base.folder), max_rank=None)
    loaded = AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=torch.float32, attn_implementation="eager"
    )
    exported = peft.PeftModel.from_pretrained(loaded, finished.path).eval()
    assert finished.samples
    for sample in finished.samples:
        mask = [place in sample.targets for place in range(len(sample.input_ids))]
        with torch.no_grad():
            expected = alone(exported, TokenizedExample(sample.input_ids, mask))
        torch.testing.assert_close(torch.tensor(sample.trained), expected, rtol=0, atol=1e-4)


def test_a_job_learns_resumes_to_equal_weights_and_is_exported(
    family: str, base: WarmBase, job: TrainingSpec, tmp_path: Path
) -> None:
    if family == "gpt2":
        with pytest.raises((AdapterError, UntrainableError), match="cannot be served"):
            check_exported(train(job, base)[-1], base)
        return
    whole = train(job, base)
    started = whole[0]
    assert isinstance(started, Started)
    assert started.layout == layouts_of(family)[0]
    assert started.has_experts == (family in MIXTURES)
    steps = [loss for loss in losses(whole).values() if loss is not None]
    assert steps[-1] < 0.85 * steps[0]
    check_exported(whole[-1], base)

    first = train(with_(job, output_dir=str(tmp_path / "cut" / "1")), base, stop_after=3)
    assert isinstance(first[-1], Stopped)
    checkpoint = tmp_path / "cut" / "1" / "checkpoints" / "step-3"
    second = train(with_(job, output_dir=str(tmp_path / "cut" / "2"), resume_from=str(checkpoint)), base)
    assert losses(first) | losses(second) == losses(whole)
    torch.testing.assert_close(weights_of(second), weights_of(whole), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["qwen3_next", "gemma2"], indirect=True)
def test_padded_pairs_are_learnt_from(family: str, base: WarmBase, job: TrainingSpec, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_bytes(lines_of(preference_pairs(20)))
    said = train(with_(job, method="dpo", beta=0.1, training_file=str(pairs)), base)
    started = said[0]
    assert isinstance(started, Started)
    assert started.layout == "padded"
    steps = [message.metrics for message in said if isinstance(message, Step)]
    assert steps[-1].train_loss is not None
    assert steps[-1].train_loss < math.log(2) / 2
    assert steps[-1].train_reward_accuracy == 1.0
    check_exported(said[-1], base)
