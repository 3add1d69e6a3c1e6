"""The trainer: a child of the worker that trains LoRA adapters on a warm base model, one by one or in turns.

`python -m workers.training.trainer` reads one `TrainingSpec` per line from stdin and answers with `Progress`
lines on stdout until stdin ends. The training loop itself is `training_loop.train`.
"""

from __future__ import annotations

import os
import sys
from typing import cast

# Idle threads must soon sleep: where an engine computes on the same cores, spinning threads make a step ten
# times slower. Sleeping at once costs a third of the speed on idle cores, so they spin for some microseconds
# first. OpenMP reads this when torch is imported.
os.environ["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "2000")
# oneDNN caches the code that it generates for each shape. Nearly every step has shapes of its own, used in
# every layer of that step and hardly ever again: the default of 1,024 costs 300 MiB and saves no time.
# https://uxlfoundation.github.io/oneDNN/dev_guide_primitive_cache.html
os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

if __name__ == "__main__":
    # Where these are installed, transformers imports them, for nothing that a trainer needs: a third
    # of the time that it takes to start. None stands for a module that is not there.
    absent = cast("dict[str, None]", sys.modules)
    absent |= dict.fromkeys(("scipy", "sklearn", "torchvision"))

import signal
import traceback
from collections import deque
from functools import partial
from pathlib import Path

import msgspec

from app.core.parent_death import die_with_parent
from app.fine_tuning.geometry import Geometry
from app.models.serving_support import refusal
from workers.crash_points import reach
from workers.training.failure import UntrainableError, explain, unsupported
from workers.training.learning import TrainingDivergedError
from workers.training.memory import is_out_of_memory, release_memory, reset_peak_memory
from workers.training.model import UnsupportedBaseError, WarmBase, load_warm_base
from workers.training.protocol import Stopped, TrainingSpec
from workers.training.ranks import Ranks
from workers.training.resident_job import ResidentJob
from workers.training.trainer_process import Inbox, JobStop, Send, StopRequest, claim_stdout
from workers.training.training_loop import NothingToSaveError, train
from workers.training.training_state import known_self_test


def main() -> None:
    """Train the jobs that stdin names, each a step in turn, until it ends."""
    send = claim_stdout()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal; the worker decides
    stop = StopRequest()
    trainer, inbox = Trainer(send, stop, Ranks.of_this_process()), Inbox(stop)
    while (spec := inbox.next_spec(wait=not trainer.jobs)) or trainer.jobs:
        if spec is not None:
            trainer.begin(spec)
        if trainer.jobs:
            trainer.take_turn()
    trainer.ranks.leave()


class Trainer:
    """The jobs of this process, and the base model that they share."""

    def __init__(self, send: Send, stop: StopRequest, ranks: Ranks) -> None:
        self.ranks = ranks
        self.jobs: deque[ResidentJob] = deque()
        """The jobs that are being trained; the first one has the next turn."""
        self._send = send
        self._stop = stop
        self._base: WarmBase | None = None

    def begin(self, spec: TrainingSpec) -> None:
        """Let the job take turns from now on, or say why it cannot be trained."""
        while self._base is None and self.jobs:
            self.take_turn()  # they stop, and let go of the base that they were trained on
        for job in self.jobs:
            job.set_aside()
        try:
            if self.ranks.size != spec.hyperparameters.gpus:
                self.ranks.start(spec.hyperparameters.gpus)
            self.ranks.pass_on(msgspec.json.encode(spec) + b"\n")
            base = self._load(spec)
        except Exception as error:
            self._fail(spec, error)
            return
        if not self.jobs:
            self._stop.made = False  # the worker repeats its request until the job stops
        steps = train(spec, base, self._send_of(spec), JobStop(self._stop, spec.attempt))
        self.jobs.append(ResidentJob(spec, base, steps))

    def take_turn(self) -> None:
        """Let the next job take a step."""
        job, goes_on = self.jobs.popleft(), False
        try:
            goes_on = job.take_step()
        except NothingToSaveError:
            self._report_stopped(job.spec)
        except Exception as error:
            self._fail(job.spec, error)
        if goes_on:
            self.jobs.append(job)
            if len(self.jobs) > 1:
                job.set_aside()
        else:
            self._stop.causes.pop(job.spec.attempt, None)

    def _load(self, spec: TrainingSpec) -> WarmBase:
        if self._base is None or not is_base_of(self._base, spec):
            self._base = None
            release_memory(self.ranks.device)  # of the old base first: two may not fit
            self._base = load_supported_base(spec, self.ranks)
        reach("trainer.base_loaded")
        if not self.jobs:
            reset_peak_memory(self._base.device)
            self._base = self._base.with_resident()
        return self._base

    def _fail(self, spec: TrainingSpec, error: Exception) -> None:
        """Say why the job cannot be trained, or that it cannot be trained beside others."""
        traceback.print_exception(error)
        had_others, starved = bool(self.jobs), is_out_of_memory(error)
        if not isinstance(error, UntrainableError | TrainingDivergedError):
            self.ranks.leave_step(out_of_memory=starved)
            if starved or not isinstance(error, OSError):  # files are read and written between steps
                self._give_up_base()
        if starved and had_others:
            self._stop.causes[spec.attempt] = "memory"
            self._report_stopped(spec)
            del self._stop.causes[spec.attempt]
        else:
            self._send_of(spec)(explain(error, spec))

    def _give_up_base(self) -> None:
        """Stop the jobs that are trained on the base, since its state is unknown."""
        self._base = None
        for job in list(self.jobs):
            self._stop.causes.setdefault(job.spec.attempt, "other_job")
            if not job.has_begun:
                self.jobs.remove(job)
                self._report_stopped(job.spec)
                del self._stop.causes[job.spec.attempt]

    def _report_stopped(self, spec: TrainingSpec) -> None:
        """Say that the job has stopped with nothing to save."""
        cause = JobStop(self._stop, spec.attempt).cause
        self._send_of(spec)(Stopped(step=0, cause=cause))

    def _send_of(self, spec: TrainingSpec) -> Send:
        return lambda message: self._send(msgspec.structs.replace(message, attempt=spec.attempt))


def is_base_of(base: WarmBase, spec: TrainingSpec) -> bool:
    """Whether the job is trained on this base, stored in this way."""
    hp = spec.hyperparameters
    return (base.folder, base.quantization) == (Path(spec.base_model_dir), hp.quantization)


def load_supported_base(spec: TrainingSpec, ranks: Ranks) -> WarmBase:
    """Load and test the base model.

    Raises:
        UntrainableError: no adapter can be trained on it and served, or not with it in four bits.
    """
    folder, quantization = Path(spec.base_model_dir), spec.hyperparameters.quantization
    if reason := refusal(folder):
        raise UntrainableError("unsupported_base_model", f"The base cannot be fine-tuned: {reason}.", "model")
    if quantization == "nf4" and (problem := Geometry.load(folder).unpackable):
        message = f"'{spec.base_model}' cannot be trained in nf4: {problem}."
        raise UntrainableError("invalid_value", message, "quantization")
    try:
        return load_warm_base(folder, ranks, quantization, partial(known_self_test, spec))
    except UnsupportedBaseError as error:
        raise unsupported(spec, error) from error


if __name__ == "__main__":
    main()
