"""The trainer: a child of the worker that trains one LoRA adapter after another on a warm base model.

`python -m workers.training.trainer` reads one `TrainingSpec` per line from stdin and answers with `Progress`
lines on stdout until stdin ends. Start reading at `train`, which is the training loop.
"""

from __future__ import annotations

import os
import sys
from typing import Any, cast

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
import time
import traceback
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import torch
from peft import PeftModel

from app.core.parent_death import die_with_parent
from app.datasets.chat_template import ChatTemplate
from app.fine_tuning.geometry import Geometry
from app.fine_tuning.packing import Limits, work_of_job
from app.fine_tuning.schedule import Schedule, epoch_batches
from app.models.adapters.target_modules import UnknownModulesError
from app.models.adapters.validation import AdapterError, module_shapes
from app.models.serving_support import has_experts, refusal
from workers.crash_points import reach
from workers.training.activation_checkpointing import checkpoint_activations
from workers.training.dataset import InvalidExampleError, TrainingExample, load_examples
from workers.training.failure import UntrainableError, explain, unsupported
from workers.training.learning import Evaluations, Learner, TrainingDivergedError, learning_rate
from workers.training.limits import exceeds_memory, first_limits, within_memory
from workers.training.memory import is_out_of_memory, peak_memory, release_memory, reset_peak_memory
from workers.training.model import UnsupportedBaseError, WarmBase, load_warm_base
from workers.training.objectives import OBJECTIVES
from workers.training.protocol import Checkpoint, Finished, Started, Step, Stopped, TrainingSpec
from workers.training.ranks import Ranks
from workers.training.served_base import sample_as_served
from workers.training.trainer_process import KeepAlive, Send, StopRequest, claim_stdout
from workers.training.training_state import (
    Checkpoints,
    Progression,
    RandomState,
    begin,
    known_self_test,
    resume,
)


class NothingToSaveError(Exception):
    """The attempt was asked to stop while there was nothing yet to resume from."""


class StopRequestedError(Exception):
    """The attempt was asked to stop; a step that has begun is given up."""


def main() -> None:
    """Train the jobs that stdin names until it ends."""
    send = claim_stdout()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal; the worker decides
    stop, ranks = StopRequest(), Ranks.of_this_process()
    base: WarmBase | None = None
    for line in sys.stdin.buffer:
        spec = msgspec.json.decode(line, type=TrainingSpec)
        try:
            if ranks.size != spec.hyperparameters.gpus:
                ranks.start(spec.hyperparameters.gpus)
            ranks.pass_on(line)
            if base is None or not is_base_of(base, spec):
                base = None
                release_memory(ranks.device)  # of the old base first: two may not fit
                base = load_supported_base(spec, ranks)
            reach("trainer.base_loaded")
            reset_peak_memory(base.device)
            base = base.with_resident()
            stop.made = False  # the worker repeats its request until the job stops
            train(spec, base, send, stop)
        except NothingToSaveError:
            send(Stopped(step=0))
        except Exception as error:
            traceback.print_exc()
            if not isinstance(error, UntrainableError | TrainingDivergedError):
                base = None  # its state is unknown
                ranks.leave_step(out_of_memory=is_out_of_memory(error))
            send(explain(error, spec))
    ranks.leave()


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


def train(spec: TrainingSpec, base: WarmBase, send: Send, stop: StopRequest) -> None:
    """Make one attempt at a job, from its files (or an earlier attempt's checkpoint) to its adapter.

    Raises:
        UntrainableError: a line of a file cannot be trained on, or the model to continue from is damaged.
        TrainingDivergedError: the loss is no longer a number.
        NothingToSaveError: the attempt was asked to stop before the first step.
    """
    hp, ranks = spec.hyperparameters, base.ranks
    training, validation = load_files(spec, ChatTemplate.load(base.folder, spec.template))
    cast(Any, torch).manual_seed(spec.seed)
    model = begin_adapter(spec, base)
    try:
        learner = begin_learner(spec, base, model, [*training, *validation])
        schedule = Schedule(
            len(training),
            n_epochs=hp.n_epochs,
            batch_size=hp.batch_size,
            checkpoint_steps=hp.checkpoint_steps,
        )
        evaluations = Evaluations(schedule, validation, hp.batch_size, spec.seed)
        at = resume(Path(spec.resume_from), model, learner.optimizer) if spec.resume_from else Progression()
        limits, recomputes = first_limits(spec, base, training)
        started = describe_run(spec, learner, training, validation, limits, at.step, recomputes=recomputes)
        checkpoint_activations(base.model, on=started.activation_checkpointing)
        send(started)
        began = time.monotonic()
        checkpoints = Checkpoints(spec, base, model, learner.optimizer, send, is_writer=ranks.is_first)
        limits = precompute_reference_logprobs(learner, at, [*training, *validation], limits, send, stop)
        if at.step == 0 and at.reference_logratios and checkpoints.are_due:
            checkpoints.save(at, for_good=False)  # they took long
        resumed_step, ready = at.step, time.monotonic()
        replay_unrecorded(at, checkpoints.newest, send, servable=at.step in schedule.checkpoints)

        try:
            while at.step < schedule.total_steps:
                epoch, place = divmod(at.step, schedule.steps_per_epoch)
                batches = epoch_batches(len(training), hp.batch_size, spec.seed, epoch + 1)
                batch = [training[number] for number in batches[place]]
                rate = learning_rate(at.step, schedule.total_steps, hp)
                limits = take_step(spec, learner, batch, rate, evaluations, at, limits, send, stop)
                done = Step(
                    metrics=at.metrics,
                    epoch=epoch + 1,
                    learning_rate=rate,
                    tokens=at.tokens,
                    elapsed_seconds=(time.monotonic() - ready) * at.step / (at.step - resumed_step),
                )
                at.since_checkpoint.append(done)
                send(done)
                save_if_due(at, checkpoints, send, servable=at.step in schedule.checkpoints)
                if ranks.agree(stop.made) and at.step < schedule.total_steps:
                    raise StopRequestedError
        except StopRequestedError:
            leave(at, checkpoints, send, stop)
            return
        finished = Finished(
            path=str(checkpoints.newest),
            trained_tokens=at.tokens,
            elapsed_seconds=time.monotonic() - began,  # before the base as it is served is read
            peak_memory_bytes=peak_memory(base.device),
            samples=sample_as_served(spec, learner, training, validation, limits, send),
        )
    finally:
        restore(base, model)

    reach("trainer.finished")
    send(finished)


def take_step(
    spec: TrainingSpec,
    learner: Learner,
    batch: list[TrainingExample],
    rate: float,
    evaluations: Evaluations,
    at: Progression,
    limits: Limits,
    send: Send,
    stop: StopRequest,
) -> Limits:
    """Take the next step on the batch, and evaluate the adapter where that is due after it.

    Returns:
        The limits within which this fitted into memory.

    Raises:
        StopRequestedError: the attempt was asked to stop while micro-batches were left to compute. Several
            ranks finish the step, because each would hear of it at another one.
    """
    ranks, keep_alive = learner.base.ranks, KeepAlive(send)
    ranks.seed_step(spec.seed, at.step)

    def before_micro_batch() -> None:
        reach("trainer.micro_batch")
        if stop.made and ranks.size == 1:
            raise StopRequestedError
        keep_alive()

    step = partial(
        learner.train_step,
        batch,
        rate,
        spec.hyperparameters.max_grad_norm,
        before_micro_batch=before_micro_batch,
    )
    of_training, limits = within_memory(step, batch, limits, learner, send)
    at.step += 1
    at.tokens += count_tokens(batch)
    some, every = evaluations.due(at.step)
    evaluate = partial(learner.step_metrics, at.step, of_training, some, every, keep_alive)
    at.metrics, limits = within_memory(evaluate, [*some, *every], limits, learner, send)
    at.random = RandomState.read()
    reach("trainer.step")
    return limits


def save_if_due(at: Progression, checkpoints: Checkpoints, send: Send, *, servable: bool) -> None:
    """Save a checkpoint if it is to be served, or the last one is too old."""
    if servable or checkpoints.are_due:
        checkpoints.save(at, for_good=servable)
    if servable:
        reach("trainer.checkpoint_saved")
        send(Checkpoint(metrics=at.metrics, path=str(checkpoints.newest)))


def leave(at: Progression, checkpoints: Checkpoints, send: Send, stop: StopRequest) -> None:
    """Stop as asked, after saving the steps that no checkpoint has yet."""
    if at.since_checkpoint:
        checkpoints.save(at, for_good=False)
    stop.made = False
    send(Stopped(step=at.step))


def restore(base: WarmBase, model: PeftModel) -> None:
    """Make the base for the next job what it was."""
    checkpoint_activations(base.model, on=False)
    model.unload()


def begin_adapter(spec: TrainingSpec, base: WarmBase) -> PeftModel:
    """Add the adapter as it is before its first step.

    Raises:
        UntrainableError: the adapter that training continues from is damaged, the base lacks the modules, or
            what would be trained could not be served.
    """
    try:
        return begin(spec, base)
    except UnknownModulesError as error:
        message = f"Invalid value for 'target_modules': {error}."
        raise UntrainableError("invalid_value", message, "target_modules") from error
    except UnsupportedBaseError as error:
        raise unsupported(spec, error) from error
    except AdapterError as error:
        if spec.parent is None:
            message = f"What would be trained could not be served: {error}."
            raise UntrainableError("unsupported_base_model", message, "model") from error
        message = f"The model that training goes on from is damaged: {error}."
        raise UntrainableError("model_damaged", message, "model") from error


def begin_learner(
    spec: TrainingSpec, base: WarmBase, model: PeftModel, examples: Sequence[TrainingExample]
) -> Learner:
    """Choose layout, objective and optimizer for the adapter."""
    hp = spec.hyperparameters
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=hp.learning_rate, weight_decay=hp.weight_decay, fused=True)
    mixing = base.token_mixing(max(example.length for example in examples))
    return Learner(base, model, mixing, OBJECTIVES[spec.method](hp), optimizer)


def precompute_reference_logprobs(
    learner: Learner,
    at: Progression,
    examples: Sequence[TrainingExample],
    limits: Limits,
    send: Send,
    stop: StopRequest,
) -> Limits:
    """Give every pair its reference: the checkpoint's, or what the model makes of it before the first step.

    Returns:
        The limits within which this fitted into memory.

    Raises:
        NothingToSaveError: the attempt was asked to stop meanwhile.
    """
    at.share_references(examples)
    keep_alive = KeepAlive(send)

    def on_micro_batch() -> None:
        if learner.base.ranks.agree(stop.made):
            raise NothingToSaveError
        keep_alive()

    precompute = partial(learner.precompute_reference_logprobs, examples, on_micro_batch)
    _, limits = within_memory(precompute, examples, limits, learner, send)
    at.share_references(examples)
    reach("trainer.references_fixed")
    return limits


def describe_run(
    spec: TrainingSpec,
    learner: Learner,
    training: Sequence[TrainingExample],
    validation: Sequence[TrainingExample],
    limits: Limits,
    resumed_step: int,
    *,
    recomputes: bool,
) -> Started:
    """Describe what the attempt is about to do.

    Activations are computed again in the backward pass if `recomputes`, or if they would not fit otherwise.
    """
    hp, base = spec.hyperparameters, learner.base
    work = work_of_job(
        [example.sequences for example in training],
        [example.sequences for example in validation],
        limits,
        learner.mixing.layout,
        n_epochs=hp.n_epochs,
        batch_size=hp.batch_size,
        checkpoint_steps=hp.checkpoint_steps,
        seed=spec.seed,
    )
    recomputes = recomputes or base.ranks.agree(exceeds_memory(learner, work.largest))
    if recomputes:
        work = work.recomputing()
    return Started(
        total_steps=int(work.training.steps),
        examples=len(training),
        tokens_per_epoch=count_tokens(training),
        trainable_parameters=sum(weight.numel() for weight in learner.weights),
        device=base.ranks.devices,
        resumed_step=resumed_step,
        resident_memory_bytes=base.resident_memory_bytes,
        value_bytes=base.model.dtype.itemsize,
        training=work.training,
        evaluation=work.evaluation,
        largest=work.largest,
        layout=learner.mixing.layout,
        layout_reason=learner.mixing.reason,
        has_experts=has_experts(module_shapes(base.folder)),
        activation_checkpointing=recomputes,
    )


def replay_unrecorded(at: Progression, checkpoint: Path, send: Send, *, servable: bool) -> None:
    """Report again what the attempt that saved the checkpoint may not have recorded."""
    for step in at.since_checkpoint:
        send(step)
    at.since_checkpoint.clear()
    if servable:
        send(Checkpoint(metrics=at.metrics, path=str(checkpoint)))


def load_files(
    spec: TrainingSpec, template: ChatTemplate
) -> tuple[list[TrainingExample], list[TrainingExample]]:
    """Read the examples of the training file and those of the validation file.

    Raises:
        UntrainableError: a line cannot be trained on; the error names it and its file.
    """

    def load(path: str | None, param: str) -> list[TrainingExample]:
        try:
            max_length = spec.hyperparameters.max_length
            return load_examples(Path(path), template, max_length, spec.method) if path else []
        except InvalidExampleError as error:
            raise UntrainableError(f"invalid_{param}", str(error), param) from error

    return load(spec.training_file, "training_file"), load(spec.validation_file, "validation_file")


def count_tokens(examples: Iterable[TrainingExample]) -> int:
    """Count tokens as the user does: whole examples, both sequences of a pair, computed or not."""
    return sum(len(part.input_ids) for example in examples for part in example.sequences)


if __name__ == "__main__":
    main()
