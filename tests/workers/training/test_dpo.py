"""DPO against plain transformers and PEFT in fp32, and through the trainer's protocol."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForCausalLM

from app.datasets.chat_template import ChatTemplate, TokenizedExample
from app.fine_tuning.packing import Limits
from app.models.token_mixing import TokenMixing
from tests.support.checkpoints import newest_resumable
from tests.support.examples import Lines, preference, preference_pairs
from tests.support.gradients import adapter_weights, gradients, randomize, with_lora
from tests.support.starved_trainer import starved_logits
from tests.support.trainer import Child, losses, with_
from tests.support.training_loop import train
from workers.training import learning, model
from workers.training.dataset import TrainingExample, load_examples
from workers.training.failure import explain
from workers.training.objectives import DPOLoss
from workers.training.protocol import (
    Checkpoint,
    Failed,
    Finished,
    Started,
    Step,
    Stopped,
    TrainingSpec,
    Warned,
)

CPU = torch.device("cpu")
BETA = 0.3
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PACKED = TokenMixing("packed", "its tokens mix by causal attention alone")
WIDE = Limits(tokens=1 << 20, targets=1 << 20)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def pairs(base_model_dir: Path, jsonl: Lines) -> list[TrainingExample]:
    several_turns = preference("And that?", "red, as before", "I cannot know")
    several_turns["input"]["messages"][1:1] = [
        {"role": "user", "content": "This?"},
        {"role": "assistant", "content": "Red."},
    ]
    lines = [*preference_pairs(5), several_turns, preference("Why?", "Because.", "Because of the light.")]
    return load_examples(jsonl(lines), ChatTemplate.load(base_model_dir), 1000, "dpo")


@pytest.fixture
def base(base_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> model.WarmBase:
    """In fp32, so that the order of a sum hardly matters."""
    monkeypatch.setattr(model, "compute_dtype", lambda device: torch.float32)
    return model.load_warm_base(base_model_dir)


@pytest.fixture
def dpo(spec: TrainingSpec, jsonl: Lines) -> TrainingSpec:
    files = {
        "training_file": str(jsonl(preference_pairs(20), "pairs.jsonl")),
        "validation_file": str(jsonl(preference_pairs(6), "valid.jsonl")),
    }
    return with_(spec, method="dpo", beta=0.1, **files)


# The arithmetic: nothing of the trainer's own here


def plain_peft(base_model_dir: Path) -> peft.PeftModel:
    base = AutoModelForCausalLM.from_pretrained(base_model_dir, dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=NAMES)
    return peft.get_peft_model(base, config)


def answer_logprob(plain: torch.nn.Module, sequence: TokenizedExample) -> Tensor:
    ids = torch.tensor([sequence.input_ids])
    learnt = torch.tensor(sequence.target_mask[1:])
    logprobs = plain(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, ids[0, 1:, None])[:, 0][learnt].sum()


def rewards(plain: torch.nn.Module, reference: torch.nn.Module, pairs: list[Any]) -> list[Tensor]:
    """By how much each pair's preferred answer is rewarded above the other."""
    margins: list[Tensor] = []
    for pair in pairs:
        gains: list[Tensor] = []
        for sequence in pair.sequences:
            with torch.no_grad():
                before = answer_logprob(reference, sequence)
            gains.append(answer_logprob(plain, sequence) - before)
        margins.append(BETA * (gains[0] - gains[1]))
    return margins


def scaled(adapted: peft.PeftModel, factor: float) -> peft.PeftModel:
    with torch.no_grad():
        for weight in adapter_weights(adapted).values():
            weight.mul_(factor)
    return adapted


@pytest.mark.parametrize("limits", [WIDE, Limits(tokens=1, targets=1)], ids=["together", "pair by pair"])
@pytest.mark.parametrize("parent", [False, True], ids=["from the base", "from a parent"])
def test_loss_margin_and_gradient_are_those_of_plain_peft(
    base_model_dir: Path,
    base: model.WarmBase,
    pairs: list[TrainingExample],
    limits: Limits,
    parent: bool,
) -> None:
    plain = randomize(plain_peft(base_model_dir))
    untrained = AutoModelForCausalLM.from_pretrained(base_model_dir, dtype=torch.float32)
    reference = randomize(plain_peft(base_model_dir)) if parent else untrained
    margins = rewards(scaled(plain, 1.2), reference, pairs)
    expected = torch.stack([F.softplus(-margin) for margin in margins]).mean()
    expected.backward()

    adapted = with_lora(base.model, base.folder)
    optimizer = torch.optim.SGD(adapter_weights(adapted).values(), lr=0.0)
    learner = learning.Learner(base, adapted, PACKED, DPOLoss(BETA), optimizer)
    if parent:
        randomize(adapted)
    learner.precompute_reference_logprobs(pairs, lambda: None, limits)
    if not parent:
        randomize(adapted)
    scaled(adapted, 1.2)
    metrics = learner.train_step(pairs, 0.0, 1e9, limits).named("train")

    assert metrics["train_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["train_reward_margin"] == pytest.approx(
        float(torch.stack(margins).detach().mean()), rel=1e-4, abs=1e-5
    )
    assert metrics["train_reward_accuracy"] == sum(float(margin.detach()) > 0 for margin in margins) / len(
        margins
    )
    torch.testing.assert_close(gradients(adapted), gradients(plain), rtol=1e-3, atol=1e-5)


def test_before_the_first_step_nothing_is_preferred(
    base: model.WarmBase, pairs: list[TrainingExample]
) -> None:
    adapted = with_lora(base.model, base.folder)
    learner = learning.Learner(
        base, adapted, PACKED, DPOLoss(BETA), torch.optim.SGD(adapted.parameters(), lr=0.0)
    )
    learner.precompute_reference_logprobs(pairs, lambda: None, WIDE)
    known = [pair.reference_logratio for pair in pairs]
    metrics = learner.evaluate(pairs, lambda: None, WIDE)

    assert metrics.mean("loss") == pytest.approx(math.log(2))
    assert (metrics.mean("reward_accuracy"), metrics.mean("reward_margin")) == (0.0, 0.0)
    randomize(adapted)
    learner.precompute_reference_logprobs(pairs, lambda: None, WIDE)
    assert [pair.reference_logratio for pair in pairs] == known, "once for all"


# The protocol


def test_a_job_learns_what_is_preferred(child: Child, dpo: TrainingSpec) -> None:
    said = child.train(with_(dpo, n_epochs=4))

    started, finished = said[0], said[-1]
    assert isinstance(started, Started) and isinstance(finished, Finished), finished
    assert (started.total_steps, started.examples) == (20, 20)
    steps = [message.metrics for message in said if isinstance(message, Step)]
    assert steps[0].train_loss == pytest.approx(math.log(2), abs=1e-2)
    assert (steps[-1].train_loss or 1) < 0.3
    assert (steps[-1].train_reward_accuracy, steps[-1].full_valid_reward_accuracy) == (1.0, 1.0)
    assert (steps[-1].train_reward_margin or 0) > 1 > abs(steps[0].train_reward_margin or 0)
    checkpoints = [message for message in said if isinstance(message, Checkpoint)]
    assert [checkpoint.metrics.step for checkpoint in checkpoints] == [5, 10, 15, 20]
    last = checkpoints[-1].metrics
    for name in ("loss", "mean_token_accuracy", "reward_accuracy", "reward_margin"):
        for of in ("train", "valid", "full_valid"):
            assert getattr(last, f"{of}_{name}") is not None
    examples = load_examples(Path(dpo.training_file), ChatTemplate.load(Path(dpo.base_model_dir)), 400, "dpo")
    for sample in finished.samples:
        pair = examples[sample.example]
        preferred, _ = pair.sequences
        assert sample.input_ids == preferred.input_ids
        assert len(sample.trained) == len(sample.base) == sum(preferred.target_mask)
    assert finished.samples


def test_a_stopped_job_goes_on_to_the_same_weights(child: Child, dpo: TrainingSpec, tmp_path: Path) -> None:
    dpo = with_(dpo, lora_dropout=0.1)
    whole = child.train(msgspec.structs.replace(dpo, output_dir=str(tmp_path / "whole" / "1")))
    dpo = msgspec.structs.replace(dpo, output_dir=str(tmp_path / "jobs" / "1"))
    first = child.train(dpo, stop_after=3)
    assert isinstance(first[-1], Stopped)
    found = newest_resumable(Path(dpo.output_dir).parent, first[-1].step)
    assert found.checkpoint is not None
    state = torch.load(found.checkpoint / "training_state.pt", weights_only=True)
    assert len(state["references"]) == 26, "those of both files"

    again = {"output_dir": str(tmp_path / "jobs" / "2"), "resume_from": str(found.checkpoint)}
    second = child.train(msgspec.structs.replace(dpo, **again))
    assert losses(first) | losses(second) == losses(whole)
    ends = [said[-1] for said in (whole, second)]
    assert all(isinstance(end, Finished) for end in ends)
    weights = [load_file(Path(end.path) / "adapter_model.safetensors") for end in ends]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    metrics = [[m.metrics for m in said if isinstance(m, Step)][-1] for said in (whole, second)]
    assert metrics[0] == metrics[1]


def test_files_of_another_method_are_named(child: Child, spec: TrainingSpec, dpo: TrainingSpec) -> None:
    [failed] = child.train(with_(spec, training_file=dpo.training_file))
    assert isinstance(failed, Failed)
    assert (failed.code, failed.param) == ("invalid_training_file", "training_file")
    assert "Line 1 has a preferred and a non-preferred output" in failed.message

    [failed] = child.train(with_(dpo, validation_file=spec.training_file))
    assert isinstance(failed, Failed)
    assert (failed.code, failed.param) == ("invalid_validation_file", "validation_file")
    assert "Line 1 has one answer" in failed.message


def test_smaller_pieces_make_the_same_steps(
    dpo: TrainingSpec, base: model.WarmBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = train(with_(dpo), base)
    monkeypatch.setattr(learning, "target_logits", lambda model, batch: starved_logits(300, model, batch))
    starved = train(with_(dpo), base)

    assert list(losses(starved).values()) == pytest.approx(list(losses(undisturbed).values()), rel=1e-3)
    kinds = [type(message) for message in starved]
    assert kinds.count(Warned) >= 1
    assert kinds.index(Warned) == 1, "the references are computed in what room there is"
    assert isinstance(starved[-1], Finished)

    monkeypatch.setattr(learning, "target_logits", lambda model, batch: starved_logits(100, model, batch))
    with pytest.raises(RuntimeError) as caught:
        train(with_(dpo), base)
    assert explain(caught.value, dpo).code == "out_of_memory", "a pair is never cut"


def test_a_stop_before_the_first_step_leaves_nothing_behind(child: Child, dpo: TrainingSpec) -> None:
    before = child.train(with_(dpo))
    said = child.train(with_(dpo), stop_after=0)
    assert [type(message) for message in said] == [Started, Stopped]
    assert said[-1] == Stopped(step=0)
    assert losses(child.train(with_(dpo))) == losses(before)
