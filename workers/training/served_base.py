"""The base model as engines serve it, for a trainer whose own copy is quantized.

A trained adapter is published for the base in bf16. What it makes of that base is computed here, with one
decoder layer on the device at a time: the whole base may not fit.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, cast

import peft
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.datasets.chat_template import TokenizedExample
from app.fine_tuning.methods import METHODS
from app.fine_tuning.packing import Limits
from workers.training.dataset import TrainingExample
from workers.training.decoder_layers import decoder_layers
from workers.training.learning import Learner, draw_samples, take_samples
from workers.training.limits import within_memory
from workers.training.memory import is_out_of_memory, release_memory
from workers.training.model import WarmBase, compute_dtype
from workers.training.protocol import Noted, Sample, TrainingSpec, Warned
from workers.training.trainer_process import KeepAlive, Send
from workers.training.training_state import begin

SERVED = torch.bfloat16

_COMPARED = 64
"""The most examples that losses are compared on: enough to tell, and not too slow layer by layer."""
_TOLERANCE = 0.05
"""The share by which the loss may rise: more than NF4 should cost."""
_ROUNDING = 0.03
"""What rounding and kernels alone do to a loss, in nats (`parity.TOLERANCE`)."""


def draw_compared(examples: list[TrainingExample], seed: int) -> list[TrainingExample]:
    """Draw the examples that losses are compared on."""
    return random.Random(seed).sample(examples, min(_COMPARED, len(examples)))  # noqa: S311


def compare_losses(trained: float, served: float, examples: int) -> Noted | Warned:
    """Compare the adapter's mean losses on the base that it was trained on and on the base as served."""
    message = (
        f"The mean loss on {examples} examples is {trained:.4f} on the base in NF4, as trained, and "
        f"{served:.4f} on the base in bf16, as served"
    )
    if served > trained * (1 + _TOLERANCE) + _ROUNDING:
        return Warned(message=f"{message}: quantization has cost quality; train without it if you can")
    return Noted(message=message)


def sample_as_served(
    spec: TrainingSpec,
    learner: Learner,
    training: list[TrainingExample],
    validation: list[TrainingExample],
    limits: Limits,
    send: Send,
) -> list[Sample]:
    """Return what an engine's answers are compared with, and say what quantization has cost."""
    drawn = draw_samples(training, METHODS[spec.method], spec.hyperparameters.max_length, spec.seed)
    if learner.base.quantization == "none":
        return take_samples(learner, drawn)
    compared = draw_compared(validation or training, spec.seed)
    trained, limits = mean_loss(learner, compared, limits, send)
    with moved_aside(learner.base):
        return sample_on_served_base(spec, learner, drawn, compared, trained, limits, send)


def sample_on_served_base(
    spec: TrainingSpec,
    learner: Learner,
    drawn: dict[int, TokenizedExample],
    compared: list[TrainingExample],
    trained: float,
    limits: Limits,
    send: Send,
) -> list[Sample]:
    """Put the adapter on the base as it is served, and sample that; return nothing if it does not fit.

    One of several ranks cannot give up alone: the worker starts all anew.
    """
    try:
        served = as_served(spec, learner)
        published, _ = mean_loss(served, compared, limits, send)
        send(compare_losses(trained, published, len(compared)))
        return take_samples(served, drawn)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or learner.base.ranks.size > 1:
            raise
    message = (
        "Not compared with the base as it is served, of which not even a layer at a time fits into memory"
    )
    send(Warned(message=message))
    return []


def mean_loss(
    learner: Learner, examples: list[TrainingExample], limits: Limits, send: Send
) -> tuple[float, Limits]:
    """Return the mean loss on examples that are not trained on, and the limits within which it fitted."""
    evaluate = partial(learner.evaluate, examples, KeepAlive(send))
    metrics, limits = within_memory(evaluate, examples, limits, learner, send)
    return metrics.mean("loss"), limits


@contextmanager
def moved_aside(base: WarmBase) -> Generator[None]:
    """Keep the base, with its adapter, in the memory of the host meanwhile, so that its GPU has room.

    Of a sharded base each GPU has a share only, which stays.
    """
    is_whole, model = base.ranks.size == 1, cast(Any, base.model)
    if is_whole:
        model.to("cpu")
    try:
        yield
    finally:
        release_memory(base.device)  # of what was there meanwhile
        if is_whole:
            model.to(base.device)


def as_served(spec: TrainingSpec, learner: Learner) -> Learner:
    """Put the trained adapter on the base as it is served.

    The weights stay mapped from their file, and each decoder layer's are on the device while it computes.
    """
    served = cast(Any, AutoModelForCausalLM).from_pretrained(
        learner.base.folder, dtype=SERVED, local_files_only=True
    )
    base = replace(learner.base, model=served.requires_grad_(False).eval())
    model = begin(spec, base)
    weights = cast(Any, peft).get_peft_model_state_dict(learner.model, save_embedding_layers=False)
    cast(Any, peft).set_peft_model_state_dict(model, weights)
    _stream_layers(served, base.device)
    return Learner(base, model, learner.mixing, learner.objective, learner.optimizer)


def _stream_layers(base: PreTrainedModel, device: torch.device) -> None:
    """Move all weights to the device but those of decoder layers, which are there for their turn only."""
    layers = list(decoder_layers(base))
    streamed = {id(tensor) for layer in layers for tensor in _frozen(layer)}
    for tensor in _tensors(base):
        if id(tensor) not in streamed:
            tensor.data = _computable(tensor, device)
    for layer in layers:
        turn = _Turn(device)
        layer.register_forward_pre_hook(turn.begin)
        layer.register_forward_hook(turn.end, always_call=True)


class _Turn:
    """One decoder layer's turn on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stored: list[tuple[Tensor, Tensor]] = []

    def begin(self, layer: nn.Module, _inputs: object) -> None:
        self._stored = [(tensor, tensor.data) for tensor in _frozen(layer)]
        for tensor, _ in self._stored:
            tensor.data = _computable(tensor, self._device)

    def end(self, _layer: nn.Module, _inputs: object, _output: object) -> None:
        for tensor, stored in self._stored:
            tensor.data = stored
        self._stored = []


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _frozen(layer: nn.Module) -> Iterator[Tensor]:
    """The layer's weights and buffers without those of its adapter."""
    return (tensor for tensor in _tensors(layer) if not tensor.requires_grad)


def _computable(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, in the type that it computes in; what is in fp32 stays so."""
    return tensor.data.to(device, compute_dtype(device) if tensor.dtype == SERVED else tensor.dtype)
