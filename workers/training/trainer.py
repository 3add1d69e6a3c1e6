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

import errno
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import torch

from app.chat_template import ChatTemplate, TokenizedExample
from workers.crash_points import reach
from workers.processes import die_with_parent
from workers.training.dataset import (
    BatchLimits,
    InvalidExampleError,
    epoch_batches,
    length,
    limits_of,
    load_examples,
)
from workers.training.learning import (
    Milestones,
    TrainingDivergedError,
    draw_samples,
    learn,
    learning_rate,
    measure,
    samples_of,
    target_logprobs,
)
from workers.training.model import WarmBase, add_lora, batch_limits, load_warm_base
from workers.training.protocol import (
    Checkpoint,
    Failed,
    Finished,
    Hyperparameters,
    Started,
    Step,
    Stopped,
    TrainingSpec,
    Warned,
    Working,
    out_of_memory,
)
from workers.training.trainer_process import Send, StopRequest, claim_stdout
from workers.training.training_state import Checkpoints, Progression, resume

Result = TypeVar("Result")
_SIGN_SECONDS = 10.0


class InvalidFileError(Exception):
    """One of the job's files cannot be trained on; `param` says which."""

    def __init__(self, param: str, reason: InvalidExampleError) -> None:
        super().__init__(str(reason))
        self.param = param


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
            stop.made = False  # whoever wants this job to stop asks until it does
            train(spec, base, send, stop)
        except Exception as error:
            traceback.print_exc()
            if not isinstance(error, InvalidFileError | TrainingDivergedError):
                base = None  # whatever state it is in
            send(explain(error, spec))


def train(spec: TrainingSpec, base: WarmBase, send: Send, stop: StopRequest) -> None:
    """One attempt at a job, from its files (or an earlier attempt's checkpoint) to its adapter.

    Raises:
        InvalidFileError: a file has a line that cannot be trained on.
        TrainingDivergedError: the loss is no longer a number.
    """
    hp = spec.hyperparameters
    began = time.monotonic()
    training = load_file(spec.training_file, "training_file", base.template, hp)
    validation = (
        load_file(spec.validation_file, "validation_file", base.template, hp) if spec.validation_file else []
    )

    cast(Any, torch).manual_seed(spec.seed)
    model = add_lora(base.model, hp.lora_rank, hp.lora_alpha, hp.lora_dropout)
    try:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=hp.learning_rate, weight_decay=hp.weight_decay, fused=True)
        largest = sorted(training, key=length)[-hp.batch_size :]
        limits = batch_limits(base.model, base.device).within(limits_of(largest)).halved(spec.halvings)
        milestones = Milestones(hp, len(training), validation, spec.seed)
        total_steps = milestones.total_steps
        at = resume(Path(spec.resume_from), model, optimizer) if spec.resume_from else Progression()
        send(
            Started(
                total_steps=total_steps,
                examples=len(training),
                tokens_per_epoch=count_tokens(training),
                trainable_parameters=sum(weight.numel() for weight in weights),
                device=str(base.device),
                resumed_step=at.step,
            )
        )
        checkpoints, resumed_step = Checkpoints(spec, model, optimizer), at.step
        tell_again(at, checkpoints.newest, send, servable=milestones.is_servable(at.step))

        while at.step < total_steps:
            epoch, place = divmod(at.step, milestones.steps_per_epoch)
            batches = epoch_batches(len(training), hp.batch_size, spec.seed, epoch + 1)
            batch = [training[number] for number in batches[place]]
            rate = learning_rate(at.step, total_steps, hp)
            step = partial(learn, base, model, weights, optimizer, batch, rate, hp.max_grad_norm)
            score, limits = within_memory(step, batch, limits, send)
            at.step += 1
            at.tokens += count_tokens(batch)
            part, whole = milestones.looks(at.step)
            look = partial(measure, base, model, at.step, score, part, whole, SignsOfLife(send))
            at.metrics, limits = within_memory(look, [*part, *whole], limits, send)
            reach("trainer.step")
            done = Step(
                metrics=at.metrics,
                epoch=epoch + 1,
                learning_rate=rate,
                tokens=at.tokens,
                elapsed_seconds=(time.monotonic() - began) * at.step / (at.step - resumed_step),
            )
            at.since_checkpoint.append(done)
            send(done)
            stopping = stop.made and at.step < total_steps
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


def tell_again(at: Progression, checkpoint: Path, send: Send, *, servable: bool) -> None:
    """What the attempt that saved the checkpoint said last: it may never have been recorded."""
    for told in at.since_checkpoint:
        send(told)
    at.since_checkpoint.clear()
    if servable:
        send(Checkpoint(metrics=at.metrics, path=str(checkpoint)))


def within_memory(
    work: Callable[[BatchLimits], Result],
    examples: Sequence[TokenizedExample],
    limits: BatchLimits,
    send: Send,
) -> tuple[Result, BatchLimits]:
    """What `work` on the examples gives, with ever smaller limits as long as it runs out of memory.

    Returns the limits that were kept to, too.
    """
    while True:
        try:
            return work(limits), limits
        except (MemoryError, RuntimeError) as error:
            limits = limits.within(limits_of(examples))  # what was really needed
            if not is_out_of_memory(error) or limits.tokens <= max(map(length, examples)):
                raise
        limits = limits.halved()
        send(
            Warned(
                message=f"Out of memory: from here on at most {limits.tokens} tokens at once, same batches"
            )
        )


def load_file(path: str, param: str, template: ChatTemplate, hp: Hyperparameters) -> list[TokenizedExample]:
    """The file's examples.

    Raises:
        InvalidFileError: naming `param` and the line.
    """
    try:
        return load_examples(Path(path), template, hp.max_length)
    except InvalidExampleError as error:
        raise InvalidFileError(param, error) from error


def count_tokens(examples: Iterable[TokenizedExample]) -> int:
    """Tokens as the user counts them: whole examples, whatever of them is computed."""
    return sum(len(example.input_ids) for example in examples)


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
    if isinstance(error, InvalidFileError):
        return Failed(code=f"invalid_{error.param}", message=str(error), param=error.param)
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
    """Bytes, since the process started: of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
