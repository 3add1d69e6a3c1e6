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
import math
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from transformers import PreTrainedModel

from app.chat_template import ChatTemplate, TokenizedExample
from workers.crash_points import reach
from workers.processes import die_with_parent
from workers.training.dataset import (
    BatchLimits,
    InvalidExampleError,
    epoch_batches,
    load_examples,
    micro_batches,
)
from workers.training.model import add_lora, batch_limits, load_base, target_logits
from workers.training.protocol import (
    Checkpoint,
    Failed,
    Finished,
    Hyperparameters,
    Metrics,
    Progress,
    Started,
    Step,
    Stopped,
    TrainingSpec,
    Warned,
)
from workers.training.training_state import Checkpoints, Progression, resume

Send = Callable[[Progress], None]


class TrainingDivergedError(Exception):
    """The loss or its gradient is no longer a number."""


class InvalidFileError(Exception):
    """One of the job's files cannot be trained on; `param` says which."""

    def __init__(self, param: str, reason: InvalidExampleError) -> None:
        super().__init__(str(reason))
        self.param = param


@dataclass(frozen=True, slots=True)
class WarmBase:
    """A loaded base model, kept between jobs."""

    folder: Path
    model: PreTrainedModel
    template: ChatTemplate
    device: torch.device


class StopRequest:
    """Set by SIGTERM; looked at between steps."""

    def __init__(self) -> None:
        self.made = False
        signal.signal(signal.SIGTERM, self._make)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the worker has it blocked

    def _make(self, _number: int, _frame: FrameType | None) -> None:
        self.made = True


@dataclass(slots=True)
class Score:
    """Loss and accuracy over target tokens, summed."""

    loss: float = 0.0
    correct: int = 0
    targets: int = 0

    @property
    def mean_loss(self) -> float:
        """Nats per target token."""
        return self.loss / self.targets

    @property
    def accuracy(self) -> float:
        """Share of target tokens that are the most likely one."""
        return self.correct / self.targets


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
        limits = batch_limits(base.model, base.device)
        steps_per_epoch = math.ceil(len(training) / hp.batch_size)
        total_steps = hp.n_epochs * steps_per_epoch
        probe = random.Random(spec.seed).sample(validation, min(hp.batch_size, len(validation)))  # noqa: S311
        probe_every = max(5, math.ceil(total_steps / 10))
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
        tell_again(at, checkpoints.newest, send, epoch_ended=at.step % steps_per_epoch == 0)

        batches = list[list[int]]()
        while at.step < total_steps:
            epoch, place = divmod(at.step, steps_per_epoch)
            if not batches or place == 0:
                batches = epoch_batches(len(training), hp.batch_size, spec.seed, epoch + 1)
            batch = [training[number] for number in batches[place]]
            rate = learning_rate(at.step, total_steps, hp)
            score, limits = learn_within_memory(
                base, model, weights, optimizer, batch, limits, rate, hp.max_grad_norm, send
            )
            at.step += 1
            at.tokens += count_tokens(batch)
            epoch_ends = at.step % steps_per_epoch == 0
            part = probe if epoch_ends or at.step % probe_every == 0 else []
            at.metrics = measure(base, model, at.step, score, part, validation if epoch_ends else [], limits)
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
            if epoch_ends or stopping or checkpoints.due:
                checkpoints.save(at, epoch_ends=epoch_ends)
            if epoch_ends:
                reach("trainer.checkpoint_saved")
                send(Checkpoint(metrics=at.metrics, path=str(checkpoints.newest)))
            if stopping:
                stop.made = False
                send(Stopped(step=at.step))
                return
    finally:
        model.unload()  # the base as it was, for the next job

    reach("trainer.finished")
    send(
        Finished(
            path=str(checkpoints.newest),
            trained_tokens=at.tokens,
            elapsed_seconds=time.monotonic() - began,
            peak_memory_bytes=peak_memory(base.device),
        )
    )


def tell_again(at: Progression, checkpoint: Path, send: Send, *, epoch_ended: bool) -> None:
    """What the attempt that saved the checkpoint said last: it may never have been recorded."""
    for told in at.since_checkpoint:
        send(told)
    at.since_checkpoint.clear()
    if at.step and epoch_ended:
        send(Checkpoint(metrics=at.metrics, path=str(checkpoint)))


def learn_within_memory(
    base: WarmBase,
    model: nn.Module,
    weights: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batch: list[TokenizedExample],
    limits: BatchLimits,
    rate: float,
    max_grad_norm: float,
    send: Send,
) -> tuple[Score, BatchLimits]:
    """`learn`, in smaller pieces if it runs out of memory; the pieces still make one batch.

    Returns the score and the limits that were kept to.
    """
    while True:
        try:
            return learn(base, model, weights, optimizer, batch, limits, rate, max_grad_norm), limits
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            longest = max(len(example.input_ids) for example in batch)
            if not is_out_of_memory(error) or limits.tokens <= longest:
                raise
        optimizer.zero_grad()
        limits = BatchLimits(tokens=limits.tokens // 2, targets=max(1, limits.targets // 2))
        send(
            Warned(
                message=f"Out of memory: from here on at most {limits.tokens} tokens at once, same batches"
            )
        )


def learn(
    base: WarmBase,
    model: nn.Module,
    weights: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batch: list[TokenizedExample],
    limits: BatchLimits,
    rate: float,
    max_grad_norm: float,
) -> Score:
    """One optimizer step on the mean loss over all target tokens of the batch, however it is cut.

    Raises:
        TrainingDivergedError: the loss or the gradient's norm is not finite.
    """
    model.train()
    score = Score()
    targets = sum(sum(example.target_mask[1:]) for example in batch)
    for packed in micro_batches(batch, limits):
        here = packed.to(base.device)
        logits = target_logits(base.model, here)
        loss = F.cross_entropy(logits, here.targets, reduction="sum")
        cast(Any, loss / targets).backward()
        add_score(score, loss, logits, here.targets)
    norm = nn.utils.clip_grad_norm_(weights, max_grad_norm)
    if not math.isfinite(score.loss) or not math.isfinite(float(norm)):
        raise TrainingDivergedError
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return score


@torch.no_grad()
def evaluate(
    base: WarmBase, model: nn.Module, examples: list[TokenizedExample], limits: BatchLimits
) -> Score:
    """The model's loss and accuracy on examples that it does not learn from."""
    model.eval()
    score = Score()
    for packed in micro_batches(examples, limits):
        here = packed.to(base.device)
        logits = target_logits(base.model, here)
        add_score(score, F.cross_entropy(logits, here.targets, reduction="sum"), logits, here.targets)
    return score


def measure(
    base: WarmBase,
    model: nn.Module,
    step: int,
    learnt: Score,
    probe: list[TokenizedExample],
    whole: list[TokenizedExample],
    limits: BatchLimits,
) -> Metrics:
    """The step's metrics, with those of the validation examples, as far as there are any."""
    metrics = Metrics(step=step, train_loss=learnt.mean_loss, train_mean_token_accuracy=learnt.accuracy)
    if probe:
        score = evaluate(base, model, probe, limits)
        metrics = msgspec.structs.replace(
            metrics, valid_loss=score.mean_loss, valid_mean_token_accuracy=score.accuracy
        )
    if whole:
        score = evaluate(base, model, whole, limits)
        metrics = msgspec.structs.replace(
            metrics, full_valid_loss=score.mean_loss, full_valid_mean_token_accuracy=score.accuracy
        )
    return metrics


def add_score(score: Score, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
    """Count a forward pass's summed loss, and its right answers from the same logits."""
    score.loss += float(loss.detach())
    score.correct += int((logits.detach().argmax(dim=-1) == targets).sum())
    score.targets += len(targets)


def learning_rate(step: int, total_steps: int, hp: Hyperparameters) -> float:
    """Linear warm-up, then linear decay towards 0 at the end; `step` counts from 0."""
    warmup = math.ceil(hp.warmup_ratio * total_steps)
    rising = (step + 1) / (warmup + 1)
    falling = (total_steps - step) / max(1, total_steps - warmup)
    return hp.learning_rate * min(1.0, rising, falling)


def load_warm_base(folder: Path) -> WarmBase:
    """The base model on the best device there is."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return WarmBase(folder, load_base(folder, device), ChatTemplate.load(folder), device)


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
    """The CPU's allocator has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


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
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed(code="storage_full", message="a checkpoint does not fit on the storage.")
    if is_out_of_memory(error):
        return Failed(
            code="out_of_memory",
            message="The training ran out of memory. Lower max_length, which bounds the longest example "
            f"({hp.max_length} tokens), batch_size or lora_rank, or train on a machine with more memory.",
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


def claim_stdout() -> Send:
    """Keep stdout for progress alone: whatever a library prints goes to stderr."""
    progress = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def send(message: Progress) -> None:
        progress.write(msgspec.json.encode(message) + b"\n")

    return send


if __name__ == "__main__":
    main()
