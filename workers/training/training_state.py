"""The state of a job's training, and how it is saved to a checkpoint and restored."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import peft
import safetensors.torch
import torch
from torch import Tensor

from app.fine_tuning.methods.metrics import Metrics
from app.models.adapters.target_modules import select, shorten
from app.models.adapters.validation import (
    CONFIG,
    WEIGHTS,
    AdapterError,
    Shapes,
    check_adapter,
    module_shapes,
)
from workers.training.checkpoint import discard, save_checkpoint
from workers.training.checkpoint_timer import CheckpointTimer
from workers.training.dataset import TrainingExample
from workers.training.layouts.self_test import SelfTest
from workers.training.model import ADAPTER, WarmBase, add_lora, linear_modules, load_weights, module_names
from workers.training.protocol import Saved, Step, TrainingSpec
from workers.training.trainer_process import Send

STATE_FILE = "training_state.pt"


@dataclass(frozen=True, slots=True)
class RandomState:
    """The state of the random numbers that a step draws, for dropout."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def read(cls) -> RandomState:
        """Return the state as it is now."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None)

    def restore(self) -> None:
        """Let the next step draw what it would have drawn in this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda)


@dataclass(slots=True)
class Progression:
    """How far training has come: what a resumed attempt needs beside weights and optimizer."""

    step: int = 0
    tokens: int = 0
    metrics: Metrics = field(default_factory=lambda: Metrics(step=0))
    """The metrics of that step."""
    random: RandomState = field(default_factory=RandomState.read)
    """The state after that step: a step that was not finished has drawn more."""
    since_checkpoint: list[Step] = field(default_factory=list[Step])
    """The steps since the previous checkpoint. A resumed attempt reports them again, because an attempt that
    lost its job could save these steps but not record them."""
    reference_logratios: list[float] = field(default_factory=list[float])
    """The references of all pairs, first the training file's, then the validation file's: the model that they
    were computed with no longer exists."""

    def share_references(self, examples: Sequence[TrainingExample]) -> None:
        """Give the examples the checkpoint's references, and keep those that the examples have."""
        for example, reference in zip(examples, self.reference_logratios, strict=False):
            example.reference_logratio = reference
        self.reference_logratios = [
            example.reference_logratio for example in examples if example.reference_logratio is not None
        ]


class Checkpoints:
    """The checkpoints of one attempt: all those that can be served, and the last two of the others.

    Of several ranks, which have the same adapter and optimizer, one writes them. Each is reported as `Saved`.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        base: WarmBase,
        model: peft.PeftModel,
        optimizer: torch.optim.Optimizer,
        send: Send,
        *,
        is_writer: bool,
    ) -> None:
        self._spec = spec
        self._send = send
        self._is_writer = is_writer
        self._base = base
        self._model = model
        self._optimizer = optimizer
        self._timer = CheckpointTimer(spec.checkpoint_seconds, spec.failure_seconds)
        self._others: list[Path] = []
        self.newest = Path(spec.resume_from or spec.output_dir)
        """The newest checkpoint's folder."""

    @property
    def are_due(self) -> bool:
        """Whether the last checkpoint is old enough for a new one."""
        return self._timer.is_due

    def save(self, at: Progression, *, for_good: bool) -> None:
        """Save this step as the newest checkpoint.

        Raises:
            OSError: it cannot be written. Nothing is left behind.
        """
        with self._timer.saving():
            if self._is_writer:
                self._write(at, for_good=for_good)
        at.since_checkpoint.clear()
        self._send(Saved(step=at.step, path=str(self.newest)))

    def _write(self, at: Progression, *, for_good: bool) -> None:
        first_step = at.since_checkpoint[0].metrics.step if at.since_checkpoint else 1
        files = _files(self._spec, self._base, at, self._model, self._optimizer)
        folder = Path(self._spec.output_dir) / "checkpoints"
        self.newest = save_checkpoint(folder, at.step, files, first_step=first_step)
        if not for_good:
            self._others.append(self.newest)
        if len(self._others) > 2:  # the newest may turn out to be damaged
            discard(self._others.pop(0))


def begin(spec: TrainingSpec, base: WarmBase) -> peft.PeftModel:
    """Add the adapter as it is before its first step: a fresh one, or the parent's as it was published.

    Raises:
        AdapterError: the parent's files are damaged, or a fresh adapter could not be served.
        UnknownModulesError: the base lacks modules that `target_modules` names.
        UnsupportedBaseError: the base has no linear layers for an adapter.
    """
    hp = spec.hyperparameters
    if spec.parent is None:
        shapes = module_shapes(base.folder)
        linear = linear_modules(base.model, shapes)
        targets = shorten(select(linear, hp.target_modules), module_names(base.model))
        model = add_lora(base.model, hp.lora_rank, hp.lora_alpha, hp.lora_dropout, targets)
        _check_servable(spec, model, shapes)
        return model
    folder = Path(spec.parent)
    lora = check_adapter(folder, module_shapes(base.folder), max_rank=None)
    model = add_lora(
        base.model, lora.rank, lora.alpha, hp.lora_dropout, lora.modules, use_rslora=lora.use_rslora
    )
    load_weights(model, folder)
    return model


def _check_servable(spec: TrainingSpec, model: peft.PeftModel, shapes: Shapes) -> None:
    """Check the files of the adapter, which will only differ in their numbers when it is trained."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in _adapter_files(spec, model).items():
                (Path(folder) / name).write_bytes(content)
            check_adapter(Path(folder), shapes, max_rank=None)
    except AdapterError:
        model.unload()
        raise


def resume(checkpoint: Path, model: peft.PeftModel, optimizer: torch.optim.Optimizer) -> Progression:
    """Restore weights, optimizer and random state as they were when the checkpoint was saved."""
    load_weights(model, checkpoint)
    state: dict[str, Any] = torch.load(checkpoint / STATE_FILE, weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    random = RandomState(state["random"], state["cuda_random"])
    random.restore()
    return Progression(
        step=state["step"],
        tokens=state["tokens"],
        metrics=msgspec.convert(state["metrics"], Metrics),
        random=random,
        since_checkpoint=msgspec.convert(state["steps"], list[Step]),
        reference_logratios=state.get("references", []),  # a checkpoint of an older version has none
    )


def known_self_test(spec: TrainingSpec, subject: str) -> SelfTest | None:
    """Return what the self-test found before the checkpoint to resume from, if its subject was the same."""
    if spec.resume_from is None:
        return None
    state: dict[str, Any] = torch.load(Path(spec.resume_from) / STATE_FILE, weights_only=True)
    found = state.get("self_tests", {}).get(subject)  # a checkpoint of an older version has none
    return found and msgspec.convert(found, SelfTest)


def _files(
    spec: TrainingSpec,
    base: WarmBase,
    at: Progression,
    model: peft.PeftModel,
    optimizer: torch.optim.Optimizer,
) -> dict[str, bytes]:
    """The adapter's files, and the state that `resume` needs beside them.

    The order of the examples and the learning rate are functions of the seed and the step: neither is saved.
    """
    state = io.BytesIO()
    torch.save(
        {
            "step": at.step,
            "tokens": at.tokens,
            "metrics": msgspec.to_builtins(at.metrics),
            "steps": msgspec.to_builtins(at.since_checkpoint),
            "references": at.reference_logratios,
            "optimizer": optimizer.state_dict(),
            "self_tests": {base.self_test_subject: msgspec.to_builtins(base.self_test)},
            "random": at.random.cpu,
            "cuda_random": at.random.cuda,
        },
        state,
    )
    return {**_adapter_files(spec, model), STATE_FILE: state.getvalue()}


def _adapter_files(spec: TrainingSpec, model: peft.PeftModel) -> dict[str, bytes]:
    """The adapter's files as PEFT and vLLM read them."""
    weights: dict[str, Tensor] = cast(Any, peft).get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: weight.contiguous().cpu() for name, weight in weights.items()}
    config: dict[str, Any] = cast(Any, model).peft_config[ADAPTER].to_dict()
    config |= {"base_model_name_or_path": spec.base_model, "inference_mode": True}
    return {
        WEIGHTS: safetensors.torch.save(tensors, metadata={"format": "pt"}),
        CONFIG: json.dumps(config, indent=2, sort_keys=True, default=sorted).encode(),
    }
