"""The training loop: one attempt at a job, from its files (or a checkpoint) to its adapter."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel

from app.datasets.chat_template import ChatTemplate
from app.fine_tuning.packing import Limits
from app.fine_tuning.schedule import Schedule, epoch_batches
from workers.crash_points import reach
from workers.training.activation_checkpointing import checkpoint_activations
from workers.training.dataset import TrainingExample
from workers.training.learning import Evaluations, Learner, learning_rate
from workers.training.limits import first_limits, within_memory
from workers.training.memory import peak_memory
from workers.training.model import WarmBase
from workers.training.preparation import (
    begin_adapter,
    begin_learner,
    count_tokens,
    describe_run,
    load_files,
)
from workers.training.protocol import Checkpoint, Finished, Step, Stopped, TrainingSpec
from workers.training.served_base import sample_as_served
from workers.training.trainer_process import JobStop, KeepAlive, Send
from workers.training.training_state import Checkpoints, Progression, RandomState, resume


class NothingToSaveError(Exception):
    """The attempt was asked to stop while there was nothing yet to resume from."""


class StopRequestedError(Exception):
    """The attempt was asked to stop; a step that has begun is given up."""


def train(spec: TrainingSpec, base: WarmBase, send: Send, stop: JobStop) -> Iterator[None]:
    """Make one attempt at a job, from its files (or an earlier attempt's checkpoint) to its adapter.

    It yields after each step. Others may use the base until the next one, which must find it as it was.

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
                yield
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
    stop: JobStop,
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


def precompute_reference_logprobs(
    learner: Learner,
    at: Progression,
    examples: Sequence[TrainingExample],
    limits: Limits,
    send: Send,
    stop: JobStop,
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


def replay_unrecorded(at: Progression, checkpoint: Path, send: Send, *, servable: bool) -> None:
    """Report again what the attempt that saved the checkpoint may not have recorded."""
    for step in at.since_checkpoint:
        send(step)
    at.since_checkpoint.clear()
    if servable:
        send(Checkpoint(metrics=at.metrics, path=str(checkpoint)))


def save_if_due(at: Progression, checkpoints: Checkpoints, send: Send, *, servable: bool) -> None:
    """Save a checkpoint if it is to be served, or if the last one is too old."""
    if servable or checkpoints.are_due:
        checkpoints.save(at, for_good=servable)
    if servable:
        reach("trainer.checkpoint_saved")
        send(Checkpoint(metrics=at.metrics, path=str(checkpoints.newest)))


def leave(at: Progression, checkpoints: Checkpoints, send: Send, stop: JobStop) -> None:
    """Stop training, after saving the steps that no checkpoint has yet."""
    if at.since_checkpoint:
        checkpoints.save(at, for_good=False)
    send(Stopped(step=at.step, cause=stop.cause))


def restore(base: WarmBase, model: PeftModel) -> None:
    """Leave the base to the next job as it was."""
    checkpoint_activations(base.model, on=False)
    model.unload()
