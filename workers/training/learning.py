"""What happens in a step: the adapter is trained on a batch, and evaluated."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from app.datasets.chat_template import TokenizedExample
from app.fine_tuning.methods.hyperparameters import Hyperparameters
from app.fine_tuning.methods.method import Method
from app.fine_tuning.methods.metrics import Metrics
from app.fine_tuning.packing import Limits
from app.fine_tuning.schedule import Schedule
from app.models.token_mixing import TokenMixing
from workers.training.dataset import TrainingExample, micro_batches
from workers.training.layouts import Batch, collate, set_layout, target_logits
from workers.training.model import WarmBase, set_training
from workers.training.objectives import MeanMetrics, Objective, preference_logratios
from workers.training.protocol import Sample

_SAMPLES = 3


class TrainingDivergedError(Exception):
    """The loss or its gradient is no longer a number."""


class Evaluations:
    """The validation examples that the adapter is evaluated on, step by step."""

    def __init__(
        self, schedule: Schedule, validation: list[TrainingExample], batch_size: int, seed: int
    ) -> None:
        self._schedule = schedule
        self._every = validation
        self._some = random.Random(seed).sample(validation, min(batch_size, len(validation)))  # noqa: S311

    def due(self, step: int) -> tuple[list[TrainingExample], list[TrainingExample]]:
        """Return some of the examples and all of them, each only if that evaluation is due after the step."""
        return (
            self._some if step in self._schedule.evaluations else [],
            self._every if step in self._schedule.epoch_ends else [],
        )


class Learner:
    """The adapter on its base model, with the layout, the objective and the optimizer of its training."""

    def __init__(
        self,
        base: WarmBase,
        model: PeftModel,
        mixing: TokenMixing,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        set_layout(base.model, mixing.layout)
        self.base = base
        self.model = model
        self.mixing = mixing
        self.objective = objective
        self.optimizer = optimizer

    @property
    def weights(self) -> list[nn.Parameter]:
        """The adapter's trainable weights."""
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]

    def train_step(
        self,
        batch: list[TrainingExample],
        rate: float,
        max_grad_norm: float,
        limits: Limits,
        before_micro_batch: Callable[[], None] = lambda: None,
    ) -> MeanMetrics:
        """Take one optimizer step on the objective's mean over the batch, in however many micro-batches.

        The adapter stays as it is until all of them are computed: `before_micro_batch` may raise.

        Raises:
            TrainingDivergedError: the loss or the gradient's norm is not finite.
        """
        set_training(self.model, is_training=True)
        self.optimizer.zero_grad()  # an attempt that ran out of memory leaves gradients
        metrics = MeanMetrics()
        normalizer = self.objective.normalizer(batch)
        for micro_batch, weight in self._deal(batch, limits):
            before_micro_batch()
            loss, more = self._forward(micro_batch)
            cast(Any, loss * weight / normalizer).backward()
            metrics.add(more, weight)
        self._sum_over_ranks(metrics)
        self.base.ranks.sum_gradients(self.weights)
        norm = nn.utils.clip_grad_norm_(self.weights, max_grad_norm)
        if not math.isfinite(metrics.mean("loss")) or not math.isfinite(float(norm)):
            raise TrainingDivergedError
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return metrics

    @torch.no_grad()
    def evaluate(
        self, examples: list[TrainingExample], on_micro_batch: Callable[[], None], limits: Limits
    ) -> MeanMetrics:
        """Compute the metrics on examples that are not trained on."""
        set_training(self.model, is_training=False)
        metrics = MeanMetrics()
        for micro_batch, weight in self._deal(examples, limits):
            metrics.add(self._forward(micro_batch)[1], weight)
            on_micro_batch()
        self._sum_over_ranks(metrics)
        return metrics

    def step_metrics(
        self,
        step: int,
        training: MeanMetrics,
        some: list[TrainingExample],
        every: list[TrainingExample],
        on_micro_batch: Callable[[], None],
        limits: Limits,
    ) -> Metrics:
        """Return the step's metrics, with those on some and on every validation example, if any are given."""
        named = training.named("train")
        for prefix, examples in (("valid", some), ("full_valid", every)):
            if examples:
                named |= self.evaluate(examples, on_micro_batch, limits).named(prefix)
        return Metrics(step=step, **named)

    @torch.no_grad()
    def precompute_reference_logprobs(
        self, examples: Sequence[TrainingExample], on_micro_batch: Callable[[], None], limits: Limits
    ) -> None:
        """Set the reference of every pair that needs one and has none to what the model makes of it now."""
        set_training(self.model, is_training=False)
        if not self.objective.needs_reference:
            return
        unknown = [pair for pair in examples if pair.reference_logratio is None]
        found = dict.fromkeys(map(id, unknown), 0.0)
        for micro_batch, weight in self._deal(unknown, limits):
            batch = self._batch(micro_batch)
            logratios = preference_logratios(target_logits(self.base.model, batch), batch)
            for pair, logratio in zip(micro_batch, cast(Any, logratios).tolist(), strict=True):
                found[id(pair)] += weight * logratio
            on_micro_batch()
        for pair, logratio in zip(unknown, self.base.ranks.sum(list(found.values())), strict=True):
            pair.reference_logratio = logratio

    def _deal(
        self, examples: Sequence[TrainingExample], limits: Limits
    ) -> Iterator[tuple[list[TrainingExample], int]]:
        """Yield this rank's micro-batches of the examples, each with its weight: 1, or 0 if it is padding.

        Every rank has as many, because all of them compute a sharded layer at the same time.
        """
        ranks = self.base.ranks
        # In this order, the ranks' shares take about as long.
        ordered = sorted(examples, key=lambda example: example.length)
        shares = [list(micro_batches(ordered[rank :: ranks.size], limits)) for rank in range(ranks.size)]
        mine = shares[ranks.rank]
        yield from ((micro_batch, 1) for micro_batch in mine)
        yield from ((ordered[:1], 0) for _ in range(max(map(len, shares)) - len(mine)))

    def _sum_over_ranks(self, metrics: MeanMetrics) -> None:
        sums = self.base.ranks.sum([number for pair in metrics.sums.values() for number in pair])
        metrics.sums = dict(zip(metrics.sums, zip(sums[::2], sums[1::2], strict=True), strict=True))

    def _forward(self, micro_batch: list[TrainingExample]) -> tuple[Tensor, MeanMetrics]:
        batch = self._batch(micro_batch)
        return self.objective(target_logits(self.base.model, batch), batch, micro_batch)

    def _batch(self, micro_batch: list[TrainingExample]) -> Batch:
        sequences = (example.sequences for example in micro_batch)
        return collate(self.mixing.layout, sequences).to(self.base.device)


def draw_samples(
    training: list[TrainingExample], method: Method, context: int, seed: int
) -> dict[int, TokenizedExample]:
    """Draw a few short sequences, on which the trained and the served model are compared.

    Returns:
        One sequence of an example, by the example's number in the training file, from 0.
    """
    compared = [example.sequences[method.compared] for example in training]
    fitting = [number for number, sequence in enumerate(compared) if len(sequence.input_ids) < context]
    drawn = random.Random(seed).sample(fitting, min(4 * _SAMPLES, len(fitting)))  # noqa: S311
    shortest = sorted(drawn, key=lambda number: len(compared[number].input_ids))[:_SAMPLES]
    return {number: compared[number] for number in shortest}


@torch.no_grad()
def target_logprobs(learner: Learner, sequence: TokenizedExample) -> list[float]:
    """Return the log-probability of each target of the sequence, in nats.

    The model computes it as it is now: once the adapter is unloaded, it is the base alone.
    """
    base = learner.base
    set_training(learner.model, is_training=False)
    batch = collate(learner.mixing.layout, [(sequence,)]).to(base.device)
    logprobs = torch.log_softmax(target_logits(base.model, batch), dim=-1)
    return cast(list[float], cast(Any, logprobs.gather(1, batch.targets[:, None])[:, 0]).tolist())


def take_samples(learner: Learner, drawn: dict[int, TokenizedExample]) -> list[Sample]:
    """Return the drawn sequences with the trained model's log-probabilities and those of the base alone.

    The adapter is unloaded in between.
    """
    trained = {number: target_logprobs(learner, sequence) for number, sequence in drawn.items()}
    learner.model.unload()
    return [
        Sample(
            example=number,
            input_ids=sequence.input_ids,
            targets=[place for place, is_target in enumerate(sequence.target_mask) if place and is_target],
            trained=trained[number],
            base=target_logprobs(learner, sequence),
        )
        for number, sequence in drawn.items()
    ]


def learning_rate(step: int, total_steps: int, hp: Hyperparameters) -> float:
    """Return the rate of a step, which counts from 0: linear warm-up, then linear decay towards 0."""
    warmup = math.ceil(hp.warmup_ratio * total_steps)
    rising = (step + 1) / (warmup + 1)
    falling = (total_steps - step) / max(1, total_steps - warmup)
    return hp.learning_rate * min(1.0, rising, falling)
