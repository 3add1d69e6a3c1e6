"""Every method has an objective, whose metrics are declared."""

from __future__ import annotations

import msgspec
import pytest
import torch

from app.datasets.chat_template import TokenizedExample
from app.fine_tuning.methods import METHODS
from app.fine_tuning.methods.hyperparameters import Hyperparameters
from app.fine_tuning.methods.metrics import Metrics
from workers.training.dataset import TrainingExample
from workers.training.layouts.packed import pack
from workers.training.objectives import OBJECTIVES, CrossEntropyLoss, DPOLoss, MeanMetrics, Objective

SEQUENCES = (TokenizedExample([1, 2, 3], [False, True, True]), TokenizedExample([1, 2], [False, True]))


def test_every_method_has_an_objective() -> None:
    assert OBJECTIVES.keys() == METHODS.keys()


@pytest.mark.parametrize(
    ("objective", "reference"),
    [(CrossEntropyLoss(), None), (DPOLoss(0.1), 0.0)],
    ids=["cross-entropy", "dpo"],
)
def test_its_metrics_are_declared(objective: Objective, reference: float | None) -> None:
    examples = [TrainingExample(SEQUENCES, reference)]
    batch = pack([SEQUENCES])
    logits = torch.zeros(len(batch.targets), 5)
    _, metrics = objective(logits, batch, examples)
    declared = {each.name for each in msgspec.structs.fields(Metrics)}
    for prefix in ("train", "valid", "full_valid"):
        assert metrics.named(prefix).keys() <= declared


def test_metrics_of_micro_batches_add_up() -> None:
    metrics = MeanMetrics()
    for more in (MeanMetrics(loss=(3.0, 2)), MeanMetrics(loss=(1.0, 2), reward_margin=(4.0, 1))):
        metrics.add(more)
    assert metrics.named("train") == {"train_loss": 1.0, "train_reward_margin": 4.0}


def test_the_trainer_takes_old_jobs_and_new() -> None:
    old = {
        "n_epochs": 1,
        "batch_size": 4,
        "learning_rate": 1e-4,
        "lora_rank": 8,
        "lora_alpha": 3.5,
        "lora_dropout": 0.0,
        "warmup_ratio": 0.05,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": 100,
    }
    assert msgspec.convert(old, Hyperparameters).learning_rate_multiplier == 1.0
    assert msgspec.convert(old | {"learning_rate_multiplier": 2.0}, Hyperparameters).lora_alpha == 3.5
