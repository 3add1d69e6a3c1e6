"""Activation checkpointing: when it is switched on, and that it changes nothing but memory and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from app.datasets.chat_template import TokenizedExample
from app.models.token_mixing import read_config, token_mixing
from tests.support.gradients import gradients, randomize, with_lora
from tests.support.tiny_bases import write_tiny_base
from tests.support.trainer import losses, with_
from tests.support.training_loop import train
from workers.device import Device
from workers.training import activation_checkpointing, learning, memory, model
from workers.training.activation_checkpointing import checkpoint_activations
from workers.training.layouts import Batch, collate, set_layout, target_logits
from workers.training.protocol import Finished, Started, TrainingSpec, Warned
from workers.training.quantization import Quantization

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two threads that wait for each other by spinning take ages where other tests keep the cores busy."""
    torch.set_num_threads(1)


def examples() -> list[tuple[TokenizedExample]]:
    drawn = torch.Generator().manual_seed(7)
    lengths = (20, 30, 12)
    ids = [[1, *torch.randint(3, 250, (length,), generator=drawn).tolist()] for length in lengths]
    return [(TokenizedExample(each, [place > 5 for place in range(len(each))]),) for each in ids]


# Plain attention, windows, convolutions, states, sinks with experts, transposed layers.
@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "lfm2", "qwen3_5", "gpt_oss", "gpt2"])
def test_gradients_are_exactly_the_same(family: str, quantization: Quantization, tmp_path: Path) -> None:
    folder = write_tiny_base(family, tmp_path / family)
    mixing = token_mixing(read_config(folder), 30)
    base = model.load_base(folder, CPU, quantization)
    set_layout(base, mixing.layout)
    adapted = randomize(with_lora(base, folder, 0.2 if family != "gpt_oss" else 0.0))
    batch = collate(mixing.layout, examples())

    def loss_and_gradients(*, on: bool) -> tuple[Tensor, Tensor, int]:
        checkpoint_activations(base, on=on)
        model.set_training(adapted, is_training=True)
        adapted.zero_grad()
        torch.manual_seed(3)
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda each: kept.append(each) or each, lambda each: each
        ):
            loss = F.cross_entropy(target_logits(base, batch), batch.targets)
        loss.backward()
        return loss.detach(), gradients(adapted), sum(each.numel() for each in kept)

    plain, recomputed = loss_and_gradients(on=False), loss_and_gradients(on=True)
    torch.testing.assert_close(recomputed[:2], plain[:2], rtol=0, atol=0)
    assert recomputed[2] < plain[2] / 4, "most activations are not kept"


@pytest.fixture(scope="module")
def base(base_model_dir: Path) -> model.WarmBase:
    return model.load_warm_base(base_model_dir)


def test_the_trainer_switches_it_on_where_the_estimate_exceeds_the_memory(
    spec: TrainingSpec, base: model.WarmBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = train(with_(spec), base)
    monkeypatch.setattr(memory, "detect", lambda: Device("cpu", "CPU", base.resident_memory_bytes))
    tight = train(with_(spec), base)
    started = [each for said in (roomy, tight) for each in said if isinstance(each, Started)]
    assert [each.activation_checkpointing for each in started] == [False, True]
    assert started[1].largest.recomputed == started[1].largest.tokens > 0
    assert losses(tight) == losses(roomy)
    assert not activation_checkpointing.checkpoints_activations(base.model), "the next job decides anew"


def test_one_example_that_does_not_fit_is_tried_with_it(
    spec: TrainingSpec, base: model.WarmBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keeping activations runs out of memory, however few tokens they are of."""

    def logits(model: Any, batch: Batch) -> Tensor:
        if torch.is_grad_enabled() and not activation_checkpointing.checkpoints_activations(model):
            raise MemoryError
        return target_logits(model, batch)

    undisturbed = train(with_(spec), base)
    monkeypatch.setattr(learning, "target_logits", logits)
    said = train(with_(spec), base)
    assert isinstance(said[-1], Finished)
    warnings = [message.message for message in said if isinstance(message, Warned)]
    assert "activations are computed again" in warnings[-1]
    assert sum("computed again" in warning for warning in warnings) == 1
    assert losses(said) == pytest.approx(losses(undisturbed), rel=1e-2)
