"""What happens in a step: the adapter learns from a batch, and what it has learnt is measured."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from app.fine_tuning.packing import Limits
from workers.training.dataset import (
    Pair,
    TrainingExample,
    length,
    micro_batches,
    pack,
    sequences,
)
from workers.training.model import WarmBase, target_logits
from workers.training.objectives import Objective, Score, advantages
from workers.training.protocol import Hyperparameters, Metrics, Sample

_SAMPLES = 3


class TrainingDivergedError(Exception):
    """The loss or its gradient is no longer a number."""


class Milestones:
    """At which steps the adapter is looked at with validation examples, and becomes a model to serve."""

    def __init__(
        self, hp: Hyperparameters, examples: int, validation: list[TrainingExample], seed: int
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

    def looks(self, step: int) -> tuple[list[TrainingExample], list[TrainingExample]]:
        """Some examples now and then, and all at the end of an epoch."""
        return (
            self._some if self.is_servable(step) or step % self._every == 0 else [],
            self._all if step % self.steps_per_epoch == 0 else [],
        )


class Learner:
    """The adapter on its base model, its optimizer, and what it is to learn."""

    def __init__(
        self, base: WarmBase, model: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer
    ) -> None:
        self.base = base
        self.model = model
        self.objective = objective
        self.optimizer = optimizer

    def learn(self, batch: list[TrainingExample], rate: float, max_grad_norm: float, limits: Limits) -> Score:
        """One optimizer step on the objective's mean over the batch, however it is cut.

        Raises:
            TrainingDivergedError: the loss or the gradient's norm is not finite.
        """
        self.model.train()
        self.optimizer.zero_grad()  # a try that ran out of memory leaves some
        score = Score()
        weight = self.objective.weight(batch)
        for piece in micro_batches(batch, limits):
            loss, of_piece = self._judge(piece)
            cast(Any, loss / weight).backward()
            score.add(of_piece)
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        if not math.isfinite(score.loss) or not math.isfinite(float(norm)):
            raise TrainingDivergedError
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return score

    @torch.no_grad()
    def evaluate(self, examples: list[TrainingExample], alive: Callable[[], None], limits: Limits) -> Score:
        """The score on examples that it does not learn from; `alive` is called on the way."""
        self.model.eval()
        score = Score()
        for piece in micro_batches(examples, limits):
            score.add(self._judge(piece)[1])
            alive()
        return score

    def measure(
        self,
        step: int,
        learnt: Score,
        probe: list[TrainingExample],
        whole: list[TrainingExample],
        alive: Callable[[], None],
        limits: Limits,
    ) -> Metrics:
        """The step's metrics, with those of the validation examples, as far as there are any."""
        measured = learnt.metrics("train")
        for name, examples in (("valid", probe), ("full_valid", whole)):
            if examples:
                measured |= self.evaluate(examples, alive, limits).metrics(name)
        return Metrics(step=step, **measured)

    @torch.no_grad()
    def fix_reference(
        self, examples: Sequence[TrainingExample], alive: Callable[[], None], limits: Limits
    ) -> None:
        """Has every pair that does not know its reference keep what the model makes of it now."""
        self.model.eval()
        unknown = [each for each in examples if isinstance(each, Pair) and each.reference is None]
        for piece in micro_batches(unknown, limits):
            packed = pack(piece).to(self.base.device)
            found = advantages(target_logits(self.base.model, packed), packed)
            for pair, reference in zip(piece, cast(list[float], cast(Any, found).tolist()), strict=True):
                cast(Pair, pair).reference = reference
            alive()

    def _judge(self, piece: list[TrainingExample]) -> tuple[Tensor, Score]:
        packed = pack(piece).to(self.base.device)
        return self.objective.judge(target_logits(self.base.model, packed), packed, piece)


def draw_samples(training: list[TrainingExample], context: int, seed: int) -> list[int]:
    """Numbers of examples to compare trained and served model on: some of the shorter ones."""
    fitting = [number for number, example in enumerate(training) if length(example) < context]
    drawn = random.Random(seed).sample(fitting, min(4 * _SAMPLES, len(fitting)))  # noqa: S311
    return sorted(drawn, key=lambda number: length(training[number]))[:_SAMPLES]


@torch.no_grad()
def target_logprobs(base: WarmBase, model: nn.Module, example: TrainingExample) -> list[float]:
    """The log-probability, in nats, of each target of the example; of a pair, of the preferred answer's."""
    model.eval()
    packed = pack(sequences(example)[:1]).to(base.device)
    scores = torch.log_softmax(target_logits(base.model, packed), dim=-1)
    return cast(list[float], cast(Any, scores.gather(1, packed.targets[:, None])[:, 0]).tolist())


def samples_of(
    base: WarmBase, training: list[TrainingExample], trained: dict[int, list[float]]
) -> list[Sample]:
    """The drawn examples with what the trained model made of them, and what the base makes of them now."""
    samples: list[Sample] = []
    for number, logprobs in trained.items():
        learnt = sequences(training[number])[0]
        targets = [place for place, is_target in enumerate(learnt.target_mask) if place and is_target]
        of_base = target_logprobs(base, base.model, learnt)
        samples.append(
            Sample(
                example=number, input_ids=learnt.input_ids, targets=targets, trained=logprobs, base=of_base
            )
        )
    return samples


def learning_rate(step: int, total_steps: int, hp: Hyperparameters) -> float:
    """Linear warm-up, then linear decay towards 0 at the end; `step` counts from 0."""
    warmup = math.ceil(hp.warmup_ratio * total_steps)
    rising = (step + 1) / (warmup + 1)
    falling = (total_steps - step) / max(1, total_steps - warmup)
    return hp.learning_rate * min(1.0, rising, falling)
