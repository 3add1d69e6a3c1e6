"""A trainer process, and the specs that it is given."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.support import held_trainer
from workers.training.protocol import (
    Failed,
    Finished,
    Hyperparameters,
    Progress,
    Started,
    Step,
    StopJob,
    Stopped,
    TrainingSpec,
)

COMMAND = [sys.executable, "-m", "workers.training.trainer"]
"""Starts the trainer as a worker does."""
HELD = [sys.executable, "-m", held_trainer.__name__]
"""The same, but it can be held."""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Child:
    """A trainer process, spoken to as the worker does."""

    def __init__(self, command: Sequence[str] = HELD) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="toque-trainer-")
        self._held = Path(self._folder.name) / "held"
        self._held.touch()
        self.process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            env=ENVIRONMENT | {held_trainer.HOLD: str(self._held)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def hold(self, attempt: str, step: int | None) -> None:
        """Have an attempt that begins from now on wait after this step until it is asked to stop."""
        self._held.write_text("" if step is None else f"{step} {attempt}")

    def train(self, spec: TrainingSpec, stop_after: int | None = None) -> list[Progress]:
        """What it says about the job; after the step `stop_after` (0: once it begins) it is asked to stop."""
        said: list[Progress] = []
        self.hold(spec.attempt, stop_after)
        self.send(spec)
        while not said or not isinstance(said[-1], Finished | Stopped | Failed):
            said.append(self.hear())
            begins = isinstance(said[-1], Started) and stop_after == 0
            if begins or (isinstance(said[-1], Step) and said[-1].metrics.step == stop_after):
                self.process.send_signal(signal.SIGTERM)
        return said

    def begin(self, spec: TrainingSpec) -> None:
        """Have it train a job, and return after the first step."""
        self.send(spec)
        while not isinstance(self.hear(), Step):
            pass

    def send(self, request: TrainingSpec | StopJob) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(request) + b"\n")
        self.process.stdin.flush()

    def hear(self) -> Progress:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the trainer died: {self.process.wait()}"
        return msgspec.json.decode(line, type=Progress)

    def close(self) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        code = self.process.wait(30)
        self.process.stdout.close()
        self._folder.cleanup()
        return code


def with_(spec: TrainingSpec, **changes: Any) -> TrainingSpec:
    """The spec with other fields or hyperparameters, and an output folder of its own."""
    names = Hyperparameters.__struct_fields__
    numbers = {name: changes.pop(name) for name in list(changes) if name in names}
    changes.setdefault("output_dir", f"{spec.output_dir}-{time.monotonic_ns()}")
    hyperparameters = msgspec.structs.replace(spec.hyperparameters, **numbers)
    return msgspec.structs.replace(spec, hyperparameters=hyperparameters, **changes)


def losses(said: list[Any]) -> dict[int, float | None]:
    return {message.metrics.step: message.metrics.train_loss for message in said if isinstance(message, Step)}
