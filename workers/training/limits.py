"""The limits of a job's micro-batches: what fits into memory at first, and what happens when it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from app.fine_tuning.geometry import Geometry, adapter_bytes
from app.fine_tuning.packing import Limits, Work
from workers.training.activation_checkpointing import checkpoint_activations, checkpoints_activations
from workers.training.dataset import TrainingExample, limits_of
from workers.training.failure import UntrainableError
from workers.training.learning import Learner
from workers.training.memory import available_memory, is_out_of_memory
from workers.training.model import WarmBase, batch_limits
from workers.training.protocol import TrainingSpec, Warned, out_of_memory
from workers.training.trainer_process import Send

Result = TypeVar("Result")


def first_limits(
    spec: TrainingSpec, base: WarmBase, training: Sequence[TrainingExample]
) -> tuple[Limits, bool]:
    """Choose the limits of a micro-batch, no wider than any batch needs.

    Several ranks start anew whenever one runs out of memory, and do here what `within_memory` does for one.

    Returns:
        The limits, and whether activations must be computed again in the backward pass within them.

    Raises:
        UntrainableError: one example at a time does not fit.
    """
    hp = spec.hyperparameters
    share = -(-hp.batch_size // base.ranks.size)  # the most examples of a batch that one rank has
    longest = sorted(training, key=lambda example: example.length)[-share:]
    limits = batch_limits(base.model, base.device).within(limits_of(longest))
    if base.ranks.size == 1:
        return limits.halved(spec.halvings), False
    least = limits_of(longest[-1:]).tokens
    tried = [limits.halved(times) for times in range(spec.halvings)]
    one_at_a_time = sum(each.tokens <= least for each in tried)
    if one_at_a_time > 1:
        raise UntrainableError("out_of_memory", out_of_memory(hp).message)
    return limits.halved(spec.halvings), one_at_a_time == 1


def exceeds_memory(learner: Learner, largest: Work) -> bool:
    """Whether a step on this micro-batch would need more memory than there is, as dry runs estimate it."""
    base = learner.base
    trainable = sum(weight.numel() for weight in learner.weights)
    held = Geometry.load(base.folder).held_bytes(
        largest, trainable, base.model.dtype.itemsize, is_gpu=base.device.type == "cuda"
    )
    needed = base.resident_memory_bytes + adapter_bytes(trainable) + held
    return needed > available_memory(base.device)


def within_memory(
    work: Callable[[Limits], Result],
    examples: Sequence[TrainingExample],
    limits: Limits,
    learner: Learner,
    send: Send,
) -> tuple[Result, Limits]:
    """Do the work on the examples, with ever smaller limits as long as it runs out of memory.

    If even one example alone does, its activations are computed again in the backward pass from then on. One
    of several ranks can do neither, since the others are in the middle of a step: the worker starts all anew.

    Returns:
        The work's result, and the limits within which it fitted into memory.
    """
    while True:
        try:
            return work(limits), limits
        except (MemoryError, RuntimeError) as error:
            limits = limits.within(limits_of(examples))  # no wider than what was needed
            least = max(limits_of([example]).tokens for example in examples)
            is_one_example = limits.tokens <= least
            is_last_resort = is_one_example and checkpoints_activations(learner.base.model)
            if not is_out_of_memory(error) or is_last_resort or learner.base.ranks.size > 1:
                raise
        if is_one_example:
            checkpoint_activations(learner.base.model, on=True)
            change = "activations are computed again in the backward pass"
        else:
            limits = limits.halved()
            change = f"at most {limits.tokens} tokens at once, same batches"
        send(Warned(message=f"Out of memory: from here on {change}"))
