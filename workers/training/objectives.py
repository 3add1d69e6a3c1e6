"""What a method has the adapter learn: how far the model is from it on a packed batch.

A batch may be computed in pieces, so an objective gives sums; `weight` is what a batch's sum is divided by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from workers.training.dataset import PackedBatch, Pair, TrainingExample, count_targets
from workers.training.protocol import TrainingSpec


@dataclass(slots=True)
class Score:
    """How well the model does on examples, summed over them."""

    loss: float = 0.0
    """Nats: of every target, or of every pair if there are pairs."""
    correct: int = 0
    targets: int = 0
    pairs: int = 0
    preferred: int = 0
    """Pairs whose preferred answer has the higher reward."""
    margin: float = 0.0
    """By how much."""

    def add(self, other: Score) -> None:
        """Counts the other's examples too."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def mean_loss(self) -> float:
        """Nats per target token, or per pair."""
        return self.loss / (self.pairs or self.targets)

    def metrics(self, of: str) -> dict[str, float]:
        """By the names that `Metrics` has for `of` ("train", "valid" or "full_valid")."""
        named = {"loss": self.mean_loss, "mean_token_accuracy": self.correct / self.targets}
        if self.pairs:
            named["reward_accuracy"] = self.preferred / self.pairs
            named["reward_margin"] = self.margin / self.pairs
        return {f"{of}_{name}": value for name, value in named.items()}


class Objective(Protocol):
    """What is to be made small."""

    def weight(self, examples: Sequence[TrainingExample]) -> int:
        """What the examples' summed loss is divided by."""
        ...

    def judge(
        self, logits: Tensor, batch: PackedBatch, examples: Sequence[TrainingExample]
    ) -> tuple[Tensor, Score]:
        """The examples' summed loss, a scalar, and their score.

        Args:
            logits: [T, vocabulary], of the batch's targets.
            batch: the examples, packed.
            examples: of the objective's kind.
        """
        ...


class AnswerTokens:
    """Supervised: cross-entropy of the assistant's words, each as heavy as any other."""

    def weight(self, examples: Sequence[TrainingExample]) -> int:
        """Their target tokens."""
        return sum(map(count_targets, examples))

    def judge(
        self,
        logits: Tensor,
        batch: PackedBatch,
        examples: Sequence[TrainingExample],  # noqa: ARG002 - the batch says it all
    ) -> tuple[Tensor, Score]:
        """Nats of all targets."""
        loss = F.cross_entropy(logits, batch.targets, reduction="sum")
        right = logits.detach().argmax(dim=-1) == batch.targets
        return loss, Score(float(loss.detach()), int(right.sum()), len(batch.targets))


class Preference:
    """DPO: `-log sigmoid(margin)`, where the margin is `beta` times what the preferred answer's
    log-probability has gained on the other's since before the first step.

    Rafailov et al., "Direct Preference Optimization", 2023, equation 7 (https://arxiv.org/abs/2305.18290). An
    answer's reward is `beta` times its own gain, so a pair's margin is the difference of two rewards.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def weight(self, examples: Sequence[TrainingExample]) -> int:
        """The pairs."""
        return len(examples)

    def judge(
        self, logits: Tensor, batch: PackedBatch, examples: Sequence[TrainingExample]
    ) -> tuple[Tensor, Score]:
        """Nats of all pairs; the accuracy is that of the preferred answers' tokens."""
        references = [cast(Pair, pair).reference for pair in examples]
        reference = torch.tensor(references, dtype=logits.dtype, device=logits.device)
        margins = self.beta * (advantages(logits, batch) - reference)
        loss = -F.logsigmoid(margins).sum()
        of_preferred = batch.sequence % 2 == 0
        right = (logits.detach().argmax(dim=-1) == batch.targets) & of_preferred
        score = Score(
            loss=float(loss.detach()),
            correct=int(right.sum()),
            targets=int(of_preferred.sum()),
            pairs=len(examples),
            preferred=int((margins > 0).sum()),
            margin=float(margins.detach().sum()),
        )
        return loss, score


def objective_of(spec: TrainingSpec) -> Objective:
    """That of the job's method."""
    if spec.method == "dpo":
        assert spec.hyperparameters.beta is not None, "the API resolves it"
        return Preference(spec.hyperparameters.beta)
    return AnswerTokens()


def advantages(logits: Tensor, batch: PackedBatch) -> Tensor:
    """[pairs]: by how much each preferred answer is likelier than the other, in nats; `batch` is of pairs."""
    logprobs = -F.cross_entropy(logits, batch.targets, reduction="none")
    answers = logprobs.new_zeros(len(batch.query_rows)).index_add(0, batch.sequence, logprobs)
    return answers[0::2] - answers[1::2]
