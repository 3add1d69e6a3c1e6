"""The trainer: a child of the worker that trains one LoRA adapter after another on a warm base model.

`python -m workers.training.trainer` reads `TrainingSpec`s from stdin, one JSON line each, and answers
with `Progress` lines on stdout until stdin ends. Read `train` first: it is the whole story.
"""

from __future__ import annotations

import os

# A thread that has nothing to do must soon sleep: where the engine computes on the same cores, spinning
# threads make a step ten times slower. Sleeping at once costs a third of the speed on idle cores, so it
# spins for some microseconds first. OpenMP reads this when torch is imported.
os.environ["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "2000")
# oneDNN keeps the code that it generates for each shape. Nearly every step has shapes of its own, used again
# in every layer of that step and hardly ever after: its default of 1,024 costs 300 MiB and saves no time.
# https://uxlfoundation.github.io/oneDNN/dev_guide_primitive_cache.html
os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

import ctypes
import errno
import gc
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import torch
from peft import PeftModel

from app.datasets.chat_template import ChatTemplate
from app.fine_tuning.packing import Limits, epoch_batches, work_of_job
from app.models.adapters.validation import AdapterError
from workers.crash_points import reach
from workers.processes import die_with_parent
from workers.training.dataset import (
    InvalidExampleError,
    TrainingExample,
    length,
    limits_of,
    load_examples,
    sequences,
)
from workers.training.learning import (
    Learner,
    Milestones,
    TrainingDivergedError,
    draw_samples,
    learning_rate,
    samples_of,
    target_logprobs,
)
from workers.training.model import WarmBase, batch_limits, load_warm_base
from workers.training.objectives import objective_of
from workers.training.protocol import (
    Checkpoint,
    Failed,
    Finished,
    Started,
    Step,
    Stopped,
    TrainingSpec,
    Warned,
    Working,
    out_of_memory,
)
from workers.training.trainer_process import Send, StopRequest, claim_stdout
from workers.training.training_state import Checkpoints, Progression, begin, resume

Result = TypeVar("Result")
_SIGN_SECONDS = 10.0


class UntrainableError(Exception):
    """What the job names cannot be trained on, or from; `param` says which."""

    def __init__(self, code: str, message: str, param: str) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class NothingToSaveError(Exception):
    """The attempt was asked to stop while there was nothing yet to resume from."""


class SignsOfLife:
    """Says now and then that work goes on, when called again and again."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._sent_at = time.monotonic()

    def __call__(self) -> None:
        """Does so if it is time."""
        if time.monotonic() - self._sent_at > _SIGN_SECONDS:
            self._send(Working())
            self._sent_at = time.monotonic()


def main() -> None:
    """Train what stdin asks for until it ends."""
    send = claim_stdout()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal; the worker decides
    stop = StopRequest()
    base: WarmBase | None = None
    for line in sys.stdin.buffer:
        spec = msgspec.json.decode(line, type=TrainingSpec)
        try:
            folder = Path(spec.base_model_dir)
            if base is None or base.folder != folder:
                base = None  # free the old one first: two may not fit
                base = load_warm_base(folder)
            reach("trainer.base_loaded")
            forget_peak(base.device)
            base = base.with_resident()
            stop.made = False  # whoever wants this job to stop asks until it does
            train(spec, base, send, stop)
        except NothingToSaveError:
            send(Stopped(step=0))
        except Exception as error:
            traceback.print_exc()
            if not isinstance(error, UntrainableError | TrainingDivergedError):
                base = None  # whatever state it is in
            send(explain(error, spec))


def train(spec: TrainingSpec, base: WarmBase, send: Send, stop: StopRequest) -> None:
    """One attempt at a job, from its files (or an earlier attempt's checkpoint) to its adapter.

    Raises:
        UntrainableError: a file has a line that cannot be trained on, or the model to go on from is damaged.
        TrainingDivergedError: the loss is no longer a number.
        NothingToSaveError: it was asked to stop before the first step.
    """
    hp = spec.hyperparameters
    began = time.monotonic()
    training, validation = load_files(spec, base.template)
    cast(Any, torch).manual_seed(spec.seed)
    model = begin_adapter(spec, base)
    try:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=hp.learning_rate, weight_decay=hp.weight_decay, fused=True)
        learner = Learner(base, model, objective_of(spec), optimizer)
        largest = sorted(training, key=length)[-hp.batch_size :]
        limits = batch_limits(base.model, base.device).within(limits_of(largest)).halved(spec.halvings)
        milestones = Milestones(hp, len(training), validation, spec.seed)
        at = resume(Path(spec.resume_from), model, optimizer) if spec.resume_from else Progression()
        send(prospect(spec, base, training, validation, limits, weights, milestones.total_steps, at.step))
        limits = fix_references(learner, at, [*training, *validation], limits, send, stop)
        checkpoints, resumed_step, ready = Checkpoints(spec, model, optimizer), at.step, time.monotonic()
        tell_again(at, checkpoints.newest, send, servable=milestones.is_servable(at.step))

        while at.step < milestones.total_steps:
            epoch, place = divmod(at.step, milestones.steps_per_epoch)
            batches = epoch_batches(len(training), hp.batch_size, spec.seed, epoch + 1)
            batch = [training[number] for number in batches[place]]
            rate = learning_rate(at.step, milestones.total_steps, hp)
            step = partial(learner.learn, batch, rate, hp.max_grad_norm)
            score, limits = within_memory(step, batch, limits, send)
            at.step += 1
            at.tokens += count_tokens(batch)
            part, whole = milestones.looks(at.step)
            look = partial(learner.measure, at.step, score, part, whole, SignsOfLife(send))
            at.metrics, limits = within_memory(look, [*part, *whole], limits, send)
            reach("trainer.step")
            done = Step(
                metrics=at.metrics,
                epoch=epoch + 1,
                learning_rate=rate,
                tokens=at.tokens,
                elapsed_seconds=(time.monotonic() - ready) * at.step / (at.step - resumed_step),
            )
            at.since_checkpoint.append(done)
            send(done)
            stopping = stop.made and at.step < milestones.total_steps
            servable = milestones.is_servable(at.step)
            if servable or stopping or checkpoints.due:
                checkpoints.save(at, for_good=servable)
            if servable:
                reach("trainer.checkpoint_saved")
                send(Checkpoint(metrics=at.metrics, path=str(checkpoints.newest)))
            if stopping:
                stop.made = False
                send(Stopped(step=at.step))
                return
        trained = {
            number: target_logprobs(base, model, training[number])
            for number in draw_samples(training, hp.max_length, spec.seed)
        }
    finally:
        model.unload()  # the base as it was, for the next job

    reach("trainer.finished")
    send(
        Finished(
            path=str(checkpoints.newest),
            trained_tokens=at.tokens,
            elapsed_seconds=time.monotonic() - began,
            peak_memory_bytes=peak_memory(base.device),
            samples=samples_of(base, training, trained),
        )
    )


def begin_adapter(spec: TrainingSpec, base: WarmBase) -> PeftModel:
    """The adapter before its first step.

    Raises:
        UntrainableError: the one that it goes on from is damaged.
    """
    try:
        return begin(spec, base)
    except AdapterError as error:
        message = f"The model that training goes on from is damaged: {error}."
        raise UntrainableError("model_damaged", message, "model") from error


def fix_references(
    learner: Learner,
    at: Progression,
    examples: Sequence[TrainingExample],
    limits: Limits,
    send: Send,
    stop: StopRequest,
) -> Limits:
    """Has every pair know what the model made of it before the first step: from the checkpoint, or computed.

    Returns the limits that were kept to.

    Raises:
        NothingToSaveError: it was asked to stop on the way.
    """
    at.share_references(examples)
    sign = SignsOfLife(send)

    def go_on() -> None:
        if stop.made:
            raise NothingToSaveError
        sign()

    _, limits = within_memory(partial(learner.fix_reference, examples, go_on), examples, limits, send)
    at.share_references(examples)
    reach("trainer.references_fixed")
    return limits


def prospect(
    spec: TrainingSpec,
    base: WarmBase,
    training: Sequence[TrainingExample],
    validation: Sequence[TrainingExample],
    limits: Limits,
    weights: Sequence[torch.nn.Parameter],
    total_steps: int,
    resumed_step: int,
) -> Started:
    """What is about to happen."""
    hp = spec.hyperparameters
    work = work_of_job(
        [sequences(example) for example in training],
        [sequences(example) for example in validation],
        Limits(limits.tokens, limits.targets),
        n_epochs=hp.n_epochs,
        batch_size=hp.batch_size,
        checkpoint_steps=hp.checkpoint_steps,
        seed=spec.seed,
    )
    return Started(
        total_steps=total_steps,
        examples=len(training),
        tokens_per_epoch=count_tokens(training),
        trainable_parameters=sum(weight.numel() for weight in weights),
        device=str(base.device),
        resumed_step=resumed_step,
        resident_memory_bytes=base.resident_memory_bytes,
        value_bytes=base.model.dtype.itemsize,
        training=work.training,
        looking=work.looking,
        largest=work.largest,
    )


def tell_again(at: Progression, checkpoint: Path, send: Send, *, servable: bool) -> None:
    """What the attempt that saved the checkpoint said last: it may never have been recorded."""
    for told in at.since_checkpoint:
        send(told)
    at.since_checkpoint.clear()
    if servable:
        send(Checkpoint(metrics=at.metrics, path=str(checkpoint)))


def within_memory(
    work: Callable[[Limits], Result],
    examples: Sequence[TrainingExample],
    limits: Limits,
    send: Send,
) -> tuple[Result, Limits]:
    """What `work` on the examples gives, with ever smaller limits as long as it runs out of memory.

    Returns the limits that were kept to, too.
    """
    while True:
        try:
            return work(limits), limits
        except (MemoryError, RuntimeError) as error:
            limits = limits.within(limits_of(examples))  # what was really needed
            least = max(limits_of([example]).tokens for example in examples)
            if not is_out_of_memory(error) or limits.tokens <= least:
                raise
        limits = limits.halved()
        send(
            Warned(
                message=f"Out of memory: from here on at most {limits.tokens} tokens at once, same batches"
            )
        )


def load_files(
    spec: TrainingSpec, template: ChatTemplate
) -> tuple[list[TrainingExample], list[TrainingExample]]:
    """The examples of the training file, and of the validation file.

    Raises:
        UntrainableError: naming the file and the line.
    """

    def load(path: str | None, param: str) -> list[TrainingExample]:
        try:
            max_length = spec.hyperparameters.max_length
            return load_examples(Path(path), template, max_length, spec.method) if path else []
        except InvalidExampleError as error:
            raise UntrainableError(f"invalid_{param}", str(error), param) from error

    return load(spec.training_file, "training_file"), load(spec.validation_file, "validation_file")


def count_tokens(examples: Iterable[TrainingExample]) -> int:
    """Tokens as the user counts them: whole examples, both halves of a pair, whatever of them is computed."""
    return sum(len(part.input_ids) for example in examples for part in sequences(example))


def is_out_of_memory(error: Exception) -> bool:
    """On the CPU neither torch's allocator nor oneDNN has an exception of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    reason = str(error)
    no_primitive = "could not create a primitive" in reason and "descriptor" not in reason
    return "can't allocate memory" in reason or no_primitive


def explain(error: Exception, spec: TrainingSpec) -> Failed:
    """What the user reads."""
    hp = spec.hyperparameters
    if isinstance(error, UntrainableError):
        return Failed(code=error.code, message=str(error), param=error.param)
    if isinstance(error, TrainingDivergedError):
        return Failed(
            code="training_diverged",
            message=f"The loss is no longer a number at learning rate {hp.learning_rate:g}. Lower "
            "learning_rate_multiplier (or learning_rate), for instance to a tenth, or raise batch_size.",
        )
    if is_out_of_memory(error):
        return out_of_memory(hp)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed(code="storage_full", message="a checkpoint does not fit on the storage.")
    if isinstance(error, OSError):
        return Failed(
            code="storage_unusable",
            message=f"A worker cannot read or write a file ({error}); every process needs the same storage",
        )
    return Failed(
        code="internal_error",
        message=f"The trainer failed ({type(error).__name__}); its log has the details.",
    )


def peak_memory(device: torch.device) -> int:
    """Bytes at most since `forget_peak`: of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text("ascii"))[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak(device: torch.device) -> None:
    """Has `peak_memory` count from now, where the system can: a warm trainer has had jobs before.

    What those left in the allocators is given back first.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError, AttributeError):  # another libc than GNU's
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    # Linux: 5 sets the peak (VmHWM) to what is resident now, see proc(5).
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


if __name__ == "__main__":
    main()
