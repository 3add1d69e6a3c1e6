"""A trainer with a base model of its own: tiny, and made on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.core.settings import BaseModelEntry, Settings
from tests.support.examples import Lines, colours, lines_of
from tests.support.tiny_model import TINY, write_tiny_model
from tests.support.trainer import Child
from workers.training.protocol import (
    Hyperparameters,
    TrainingSpec,
)


@pytest.fixture(scope="session")
def base_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def jsonl(tmp_path: Path) -> Lines:
    def write(examples: list[dict[str, Any]], name: str = "training.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(lines_of(examples))
        return path

    return write


@pytest.fixture(scope="session")
def child() -> Iterator[Child]:
    """One for all tests of all modules, so it is warm in all but the first."""
    child = Child()
    yield child
    child.close()


@pytest.fixture
def spec(base_model_dir: Path, jsonl: Lines, tmp_path: Path) -> TrainingSpec:
    return TrainingSpec(
        job_id="ftjob-1",
        base_model="tiny",
        base_model_dir=str(base_model_dir),
        training_file=str(jsonl(colours(20))),
        validation_file=None,
        output_dir=str(tmp_path / "jobs" / "ftjob-1" / "1"),
        resume_from=None,
        checkpoint_seconds=3600.0,
        seed=42,
        halvings=0,
        hyperparameters=Hyperparameters(
            n_epochs=2,
            batch_size=4,
            learning_rate=1e-2,
            lora_rank=4,
            lora_alpha=8,
            lora_dropout=0.0,
            warmup_ratio=0.1,
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=400,
        ),
    )


@pytest.fixture
def settings(settings: Settings, base_model_dir: Path) -> Settings:
    tiny = BaseModelEntry(name=TINY, source=str(base_model_dir), context=512)
    changes = {"base_models": [tiny], "heartbeat_seconds": 0.2, "lease_seconds": 2.0, "retry_seconds": 0.1}
    return settings.model_copy(update=changes)
