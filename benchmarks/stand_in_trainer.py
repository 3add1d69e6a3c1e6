"""A trainer that learns nothing, fast: it speaks the worker's protocol as `workers.training.trainer` does.

Its "weights" are a chain of hashes over seed and steps, so whoever knows both knows what an undisturbed job
ends with. No torch, a step takes some milliseconds; files, checkpoints, signals and messages are real.
"""

from __future__ import annotations

import hashlib
import math
import random
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import msgspec

from app.core.parent_death import die_with_parent
from workers.training.checkpoint import discard, save_checkpoint
from workers.training.checkpoint_timer import CheckpointTimer
from workers.training.protocol import (
    Checkpoint,
    Failed,
    Finished,
    Metrics,
    Saved,
    Started,
    Step,
    Stopped,
    TrainingSpec,
)
from workers.training.trainer_process import Send, StopRequest, claim_stdout

WEIGHTS_FILE = "adapter_model.safetensors"
STATE_FILE = "training_state.json"
STEP_SECONDS = (0.02, 0.06)


@dataclass(frozen=True, slots=True)
class Progression:
    """How far a job is."""

    weights: bytes
    step: int = 0

    def next(self) -> Progression:
        step = self.step + 1
        return Progression(hashlib.sha256(self.weights + step.to_bytes(4)).digest(), step)

    @property
    def metrics(self) -> Metrics:
        return Metrics(step=self.step, train_loss=int.from_bytes(self.weights[:4]) / 2**32)


def untrained(seed: int) -> Progression:
    return Progression(hashlib.sha256(str(seed).encode()).digest())


def main() -> None:
    send = claim_stdout()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopRequest()
    for line in sys.stdin.buffer:
        spec = msgspec.json.decode(line, type=TrainingSpec)
        try:
            train(spec, send, stop)
        except Exception as error:
            traceback.print_exc()
            send(Failed(code="internal_error", message=f"The trainer failed ({type(error).__name__})"))


def train(spec: TrainingSpec, send: Send, stop: StopRequest) -> None:
    """One attempt at a job; saves and says the same things in the same order as the real trainer."""
    began = time.monotonic()
    examples = Path(spec.training_file).read_bytes().count(b"\n")
    steps_per_epoch = math.ceil(examples / spec.hyperparameters.batch_size)
    total_steps = spec.hyperparameters.n_epochs * steps_per_epoch
    at, told = resume(Path(spec.resume_from)) if spec.resume_from else (untrained(spec.seed), [])
    send(
        Started(
            total_steps=total_steps,
            examples=examples,
            tokens_per_epoch=examples,
            trainable_parameters=len(at.weights),
            device="none",
            resumed_step=at.step,
        )
    )
    folder, within_epoch = Path(spec.resume_from or spec.output_dir), list[Path]()
    timer = CheckpointTimer(spec.checkpoint_seconds, spec.failure_seconds)
    for step in told:
        send(step)  # it may never have been recorded
    if at.step and at.step % steps_per_epoch == 0:
        send(Checkpoint(metrics=at.metrics, path=str(folder)))

    told = list[Step]()
    while at.step < total_steps:
        time.sleep(random.uniform(*STEP_SECONDS))
        at = at.next()
        told.append(
            Step(
                metrics=at.metrics,
                epoch=math.ceil(at.step / steps_per_epoch),
                learning_rate=spec.hyperparameters.learning_rate,
                tokens=at.step,
                elapsed_seconds=time.monotonic() - began,
            )
        )
        send(told[-1])
        epoch_ends = at.step % steps_per_epoch == 0
        stopping = stop.made and at.step < total_steps
        if epoch_ends or stopping or timer.is_due:
            with timer.saving():
                folder = save(spec, at, told)
            told.clear()
            send(Saved(step=at.step, path=str(folder)))
            if not epoch_ends:
                within_epoch.append(folder)
            if len(within_epoch) > 2:
                discard(within_epoch.pop(0))
        if epoch_ends:
            send(Checkpoint(metrics=at.metrics, path=str(folder)))
        if stopping:
            stop.made = False
            send(Stopped(step=at.step))
            return
    send(
        Finished(
            path=str(folder),
            trained_tokens=at.step,
            elapsed_seconds=time.monotonic() - began,
            peak_memory_bytes=0,
        )
    )


def save(spec: TrainingSpec, at: Progression, told: list[Step]) -> Path:
    files = {
        WEIGHTS_FILE: at.weights,
        "adapter_config.json": msgspec.json.encode({"base_model_name_or_path": spec.base_model}),
        STATE_FILE: msgspec.json.encode(told),
    }
    folder = Path(spec.output_dir) / "checkpoints"
    return save_checkpoint(folder, at.step, files, first_step=told[0].metrics.step)


def resume(checkpoint: Path) -> tuple[Progression, list[Step]]:
    """How far it is, and what was told about the last steps."""
    told = msgspec.json.decode((checkpoint / STATE_FILE).read_bytes(), type=list[Step])
    return Progression((checkpoint / WEIGHTS_FILE).read_bytes(), told[-1].metrics.step), told


if __name__ == "__main__":
    main()
