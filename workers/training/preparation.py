"""What an attempt has before its first step: examples, adapter, optimizer, and a description of its work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from peft import PeftModel

from app.datasets.chat_template import ChatTemplate
from app.fine_tuning.packing import Limits, work_of_job
from app.models.adapters.target_modules import UnknownModulesError
from app.models.adapters.validation import AdapterError, module_shapes
from app.models.serving_support import has_experts
from workers.training.dataset import InvalidExampleError, TrainingExample, load_examples
from workers.training.failure import UntrainableError, unsupported
from workers.training.learning import Learner
from workers.training.limits import exceeds_memory
from workers.training.model import UnsupportedBaseError, WarmBase
from workers.training.objectives import OBJECTIVES
from workers.training.protocol import Started, TrainingSpec
from workers.training.training_state import begin


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


def count_tokens(examples: Iterable[TrainingExample]) -> int:
    """Count tokens as the user does: whole examples, both sequences of a pair, computed or not."""
    return sum(len(part.input_ids) for example in examples for part in example.sequences)
