"""The training loop, in the process of the test."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from workers.training import training_loop
from workers.training.model import WarmBase
from workers.training.protocol import Progress, Step, TrainingSpec


def train(spec: TrainingSpec, base: WarmBase, stop_after: int | None = None) -> list[Progress]:
    """What the loop says about the job; after the step `stop_after` it is asked to stop."""
    said: list[Progress] = []
    stop = SimpleNamespace(made=False, cause="request")

    def send(progress: Progress) -> None:
        said.append(progress)
        stop.made = isinstance(progress, Step) and progress.metrics.step == stop_after

    for _ in training_loop.train(spec, base, send, cast(Any, stop)):
        pass
    return said
