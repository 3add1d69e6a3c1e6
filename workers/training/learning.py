"""What happens in a step: the adapter learns from a batch, and what it has learnt is measured."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from app.chat_template import TokenizedExample
from workers.training.dataset import BatchLimits, micro_batches, pack
from workers.training.model import WarmBase, target_logits
from workers.training.protocol import Hyperparameters, Metrics, Sample

_SAMPLES = 3


class TrainingDivergedError(Exception):
    """The loss or its gradient is no longer a number."""


@dataclass(slots=True)
class Score:
    """Loss and accuracy over target tokens, summed."""

    loss: float = 0.0
    correct: int = 0
    targets: int = 0

    @property
    def mean_loss(self) -> float:
        """Nats per target token."""
        return self.loss / self.targets

    @property
    def accuracy(self) -> float:
        """Share of target tokens that are the most likely one."""
        return self.correct / self.targets


class Milestones:
    """At which steps the adapter is looked at with validation examples, and becomes a model to serve."""

    def __init__(
        self, hp: Hyperparameters, examples: int, validation: list[TokenizedExample], seed: int
    ) -> None:
        self.steps_per_epoch = math.ceil(examples / hp.batch_size)
        self.total_steps = hp.n_epochs * self.steps_per_epoch
        self._checkpoint_steps = hp.checkpoint_steps or self.steps_per_epoch
        self._all = validation
        self._some = random.Random(seed).sample(validation, min(hp.batch_size, len(validation)))  # noqa: S311
        self._every = max(5, math.ceil(self.total_steps / 10))

    def is_servable(self, step: int) -> bool:
        """At the end of every epoch, and every so many steps if that was asked for."""
        return step > 0 and 0 in (step % self.steps_per_epoch, step % self._checkpoint_steps)

    def looks(self, step: int) -> tuple[list[TokenizedExample], list[TokenizedExample]]:
        """Some examples now and then, and all at the end of an epoch."""
        return (
            self._some if self.is_servable(step) or step % self._every == 0 else [],
            self._all if step % self.steps_per_epoch == 0 else [],
        )


def learn(
    base: WarmBase,
    model: nn.Module,
    weights: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batch: list[TokenizedExample],
    rate: float,
    max_grad_norm: float,
    limits: BatchLimits,
) -> Score:
    """One optimizer step on the mean loss over all target tokens of the batch, however it is cut.

    Raises:
        TrainingDivergedError: the loss or the gradient's norm is not finite.
    """
    model.train()
    optimizer.zero_grad()  # a try that ran out of memory leaves some
    score = Score()
    targets = sum(sum(example.target_mask[1:]) for example in batch)
    for packed in micro_batches(batch, limits):
        here = packed.to(base.device)
        logits = target_logits(base.model, here)
        loss = F.cross_entropy(logits, here.targets, reduction="sum")
        cast(Any, loss / targets).backward()
        add_score(score, loss, logits, here.targets)
    norm = nn.utils.clip_grad_norm_(weights, max_grad_norm)
    if not math.isfinite(score.loss) or not math.isfinite(float(norm)):
        raise TrainingDivergedError
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return score


@torch.no_grad()
def evaluate(
    base: WarmBase,
    model: nn.Module,
    examples: list[TokenizedExample],
    limits: BatchLimits,
    alive: Callable[[], None],
) -> Score:
    """The model's loss and accuracy on examples that it does not learn from; `alive` is called on the way."""
    model.eval()
    score = Score()
    for packed in micro_batches(examples, limits):
        here = packed.to(base.device)
        logits = target_logits(base.model, here)
        alive()
        add_score(score, F.cross_entropy(logits, here.targets, reduction="sum"), logits, here.targets)
    return score


def measure(
    base: WarmBase,
    model: nn.Module,
    step: int,
    learnt: Score,
    probe: list[TokenizedExample],
    whole: list[TokenizedExample],
    alive: Callable[[], None],
    limits: BatchLimits,
) -> Metrics:
    """The step's metrics, with those of the validation examples, as far as there are any."""
    metrics = Metrics(step=step, train_loss=learnt.mean_loss, train_mean_token_accuracy=learnt.accuracy)
    if probe:
        score = evaluate(base, model, probe, limits, alive)
        metrics = msgspec.structs.replace(
            metrics, valid_loss=score.mean_loss, valid_mean_token_accuracy=score.accuracy
        )
    if whole:
        score = evaluate(base, model, whole, limits, alive)
        metrics = msgspec.structs.replace(
            metrics, full_valid_loss=score.mean_loss, full_valid_mean_token_accuracy=score.accuracy
        )
    return metrics


def draw_samples(training: list[TokenizedExample], context: int, seed: int) -> list[int]:
    """Numbers of examples to compare trained and served model on: some of the shorter ones."""
    fitting = [number for number, example in enumerate(training) if len(example.input_ids) < context]
    drawn = random.Random(seed).sample(fitting, min(4 * _SAMPLES, len(fitting)))  # noqa: S311
    return sorted(drawn, key=lambda number: len(training[number].input_ids))[:_SAMPLES]


@torch.no_grad()
def target_logprobs(base: WarmBase, model: nn.Module, example: TokenizedExample) -> list[float]:
    """The log-probability, in nats, of each of the example's targets."""
    model.eval()
    packed = pack([example]).to(base.device)
    scores = torch.log_softmax(target_logits(base.model, packed), dim=-1)
    return cast(list[float], cast(Any, scores.gather(1, packed.targets[:, None])[:, 0]).tolist())


def samples_of(
    base: WarmBase, training: list[TokenizedExample], trained: dict[int, list[float]]
) -> list[Sample]:
    """The drawn examples with what the trained model made of them, and what the base makes of them now."""
    return [
        Sample(
            example=number,
            input_ids=training[number].input_ids,
            targets=[
                place for place, is_target in enumerate(training[number].target_mask) if place and is_target
            ],
            trained=logprobs,
            base=target_logprobs(base, base.model, training[number]),
        )
        for number, logprobs in trained.items()
    ]


def add_score(score: Score, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
    """Count a forward pass's summed loss, and its right answers from the same logits."""
    score.loss += float(loss.detach())
    score.correct += int((logits.detach().argmax(dim=-1) == targets).sum())
    score.targets += len(targets)


def learning_rate(step: int, total_steps: int, hp: Hyperparameters) -> float:
    """Linear warm-up, then linear decay towards 0 at the end; `step` counts from 0."""
    warmup = math.ceil(hp.warmup_ratio * total_steps)
    rising = (step + 1) / (warmup + 1)
    falling = (total_steps - step) / max(1, total_steps - warmup)
    return hp.learning_rate * min(1.0, rising, falling)
