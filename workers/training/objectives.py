"""The objectives that an adapter is trained on: each method's loss on a micro-batch, and its metrics.

A batch is computed in micro-batches, so an objective returns sums, which add up to those of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from app.fine_tuning.methods.hyperparameters import Hyperparameters
from workers.training.dataset import TrainingExample
from workers.training.layouts import Batch


class MeanMetrics:
    """Means by name, kept as a sum and a count each, so that those of micro-batches can be added up."""

    def __init__(self, **sums: tuple[float, float]) -> None:
        self.sums = sums

    def add(self, other: MeanMetrics, weight: int = 1) -> None:
        """Count the other's examples, too, so many times."""
        for name, (more, more_count) in other.sums.items():
            value, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = value + weight * more, count + weight * more_count

    def mean(self, name: str) -> float:
        """The mean over everything that was added up."""
        value, count = self.sums[name]
        return value / count

    def named(self, prefix: str) -> dict[str, float]:
        """All the means by the names they have in `Metrics`, where `prefix` is train, valid or full_valid."""
        return {f"{prefix}_{name}": self.mean(name) for name in self.sums}


class Objective(Protocol):
    """What training minimizes."""

    needs_reference: bool
    """Whether examples are compared with what the model makes of them before the first step."""

    def normalizer(self, examples: Sequence[TrainingExample]) -> int:
        """The number that the examples' summed loss is divided by."""
        ...

    def __call__(
        self, logits: Tensor, batch: Batch, examples: Sequence[TrainingExample]
    ) -> tuple[Tensor, MeanMetrics]:
        """Compute the examples' summed loss, a scalar, and their metrics.

        Args:
            logits: [T, vocabulary], of the batch's targets.
            batch: the examples' sequences.
            examples: of the kind that the objective's method tokenizes to.
        """
        ...


class CrossEntropyLoss:
    """The cross-entropy of the target tokens, all of which have the same weight (supervised fine-tuning)."""

    needs_reference = False

    def normalizer(self, examples: Sequence[TrainingExample]) -> int:
        """The number of target tokens."""
        return sum(example.targets for example in examples)

    def __call__(
        self,
        logits: Tensor,
        batch: Batch,
        examples: Sequence[TrainingExample],  # noqa: ARG002 - the batch holds all that is needed
    ) -> tuple[Tensor, MeanMetrics]:
        """Sum the loss of all targets, in nats."""
        loss = F.cross_entropy(logits, batch.targets, reduction="sum")
        correct = logits.detach().argmax(dim=-1) == batch.targets
        targets = len(batch.targets)
        return loss, MeanMetrics(
            loss=(float(loss.detach()), targets), mean_token_accuracy=(int(correct.sum()), targets)
        )


class DPOLoss:
    """Direct preference optimization: `-log sigmoid(reward margin)` of every pair.

    An answer's reward is `beta` times what its log-probability has gained since before the first step; a
    pair's reward margin is the preferred answer's reward minus the other's. Rafailov et al., "Direct
    Preference Optimization", 2023, equation 7 (https://arxiv.org/abs/2305.18290).
    """

    needs_reference = True

    def __init__(self, beta: float) -> None:
        self.beta = beta

    @classmethod
    def of(cls, hp: Hyperparameters) -> DPOLoss:
        """The loss of a job with these hyperparameters."""
        assert hp.beta is not None, "the API resolves it"
        return cls(hp.beta)

    def normalizer(self, examples: Sequence[TrainingExample]) -> int:
        """The number of pairs."""
        return len(examples)

    def __call__(
        self, logits: Tensor, batch: Batch, examples: Sequence[TrainingExample]
    ) -> tuple[Tensor, MeanMetrics]:
        """Sum the loss of all pairs, in nats. Token accuracy is that of the preferred answers."""
        references = [pair.reference_logratio for pair in examples]
        reference = torch.tensor(references, dtype=logits.dtype, device=logits.device)
        margins = self.beta * (preference_logratios(logits, batch) - reference)
        loss = -F.logsigmoid(margins).sum()
        is_preferred = batch.sequence % 2 == 0
        correct = (logits.detach().argmax(dim=-1) == batch.targets) & is_preferred
        pairs = len(examples)
        return loss, MeanMetrics(
            loss=(float(loss.detach()), pairs),
            mean_token_accuracy=(int(correct.sum()), int(is_preferred.sum())),
            reward_accuracy=(int((margins > 0).sum()), pairs),
            reward_margin=(float(margins.detach().sum()), pairs),
        )


def preference_logratios(logits: Tensor, batch: Batch) -> Tensor:
    """[pairs]: the log-probability of each preferred answer minus that of the other, in nats.

    The batch holds pairs, each pair's preferred answer first.
    """
    logprobs = -F.cross_entropy(logits, batch.targets, reduction="none")
    answers = logprobs.new_zeros(batch.sequences).index_add(0, batch.sequence, logprobs)
    return answers[0::2] - answers[1::2]


OBJECTIVES: dict[str, Callable[[Hyperparameters], Objective]] = {
    "supervised": lambda _: CrossEntropyLoss(),
    "dpo": DPOLoss.of,
}
"""How the objective of each of `app.fine_tuning.methods` is made from a job's hyperparameters."""
