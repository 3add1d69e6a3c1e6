"""How far a job is, and how a checkpoint of it is saved and gone on from."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import peft
import safetensors.torch
import torch
from torch import Tensor

from app.models.adapters.validation import CONFIG, WEIGHTS, check_adapter, module_shapes
from workers.training.checkpoint import discard, save_checkpoint
from workers.training.dataset import Pair, TrainingExample
from workers.training.model import ADAPTER, WarmBase, add_lora, load_weights
from workers.training.protocol import Metrics, Step, TrainingSpec

STATE_FILE = "training_state.pt"


@dataclass(slots=True)
class Progression:
    """What a resumed attempt goes on with, beside weights and optimizer."""

    step: int = 0
    tokens: int = 0
    metrics: Metrics = field(default_factory=lambda: Metrics(step=0))
    """Of that step."""
    since_checkpoint: list[Step] = field(default_factory=list[Step])
    """What was told about the steps after the checkpoint before; whoever goes on tells it again, because
    an attempt that lost its job could save these steps but not record them."""
    references: list[float] = field(default_factory=list[float])
    """Of all pairs, of the training file and then of the validation file: the model that they were computed
    with is no longer there."""

    def share_references(self, examples: Sequence[TrainingExample]) -> None:
        """Tells the pairs those of the checkpoint, and keeps those that the pairs know."""
        pairs = [example for example in examples if isinstance(example, Pair)]
        for pair, reference in zip(pairs, self.references, strict=False):
            pair.reference = reference
        self.references = [pair.reference for pair in pairs if pair.reference is not None]


class Checkpoints:
    """The checkpoints of one attempt: those that are served, and of the others the last two."""

    def __init__(self, spec: TrainingSpec, model: peft.PeftModel, optimizer: torch.optim.Optimizer) -> None:
        self._spec = spec
        self._model = model
        self._optimizer = optimizer
        self._saved_at = time.monotonic()
        self._others: list[Path] = []
        self.newest = Path(spec.resume_from or spec.output_dir)
        """The folder."""

    @property
    def due(self) -> bool:
        """Whether so much was done since the last one that it should be saved."""
        return time.monotonic() - self._saved_at >= self._spec.checkpoint_seconds

    def save(self, at: Progression, *, for_good: bool) -> None:
        """Makes this step the newest checkpoint.

        Raises:
            OSError: it cannot be written; nothing is left behind.
        """
        first_step = at.since_checkpoint[0].metrics.step
        files = _files(self._spec, at, self._model, self._optimizer)
        folder = Path(self._spec.output_dir) / "checkpoints"
        self.newest = save_checkpoint(folder, at.step, files, first_step=first_step)
        at.since_checkpoint.clear()
        self._saved_at = time.monotonic()
        if not for_good:
            self._others.append(self.newest)
        if len(self._others) > 2:  # the newest may turn out to be damaged
            discard(self._others.pop(0))


def begin(spec: TrainingSpec, base: WarmBase) -> peft.PeftModel:
    """The adapter before its first step: a fresh one, or the parent's as it was published.

    Raises:
        AdapterError: the parent's files are damaged.
    """
    hp = spec.hyperparameters
    if spec.parent is None:
        return add_lora(base.model, hp.lora_rank, hp.lora_alpha, hp.lora_dropout)
    folder = Path(spec.parent)
    lora = check_adapter(folder, module_shapes(base.folder), max_rank=None)
    model = add_lora(
        base.model, lora.rank, lora.alpha, hp.lora_dropout, lora.modules, use_rslora=lora.use_rslora
    )
    load_weights(model, folder)
    return model


def resume(checkpoint: Path, model: peft.PeftModel, optimizer: torch.optim.Optimizer) -> Progression:
    """Puts weights, optimizer and random state back as they were when the checkpoint was saved."""
    load_weights(model, checkpoint)
    state: dict[str, Any] = torch.load(checkpoint / STATE_FILE, weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    if state["cuda_random"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda_random"])
    return Progression(
        step=state["step"],
        tokens=state["tokens"],
        metrics=msgspec.convert(state["metrics"], Metrics),
        since_checkpoint=msgspec.convert(state["steps"], list[Step]),
        references=state.get("references", []),  # a checkpoint of an older version has none
    )


def _files(
    spec: TrainingSpec, at: Progression, model: peft.PeftModel, optimizer: torch.optim.Optimizer
) -> dict[str, bytes]:
    """The adapter as PEFT and vLLM read it, and what `resume` needs beside it.

    The data's order and the learning rate are functions of the seed and the step.
    """
    weights: dict[str, Tensor] = cast(Any, peft).get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: weight.contiguous().cpu() for name, weight in weights.items()}
    config: dict[str, Any] = cast(Any, model).peft_config[ADAPTER].to_dict()
    config |= {"base_model_name_or_path": spec.base_model, "inference_mode": True}
    state = io.BytesIO()
    torch.save(
        {
            "step": at.step,
            "tokens": at.tokens,
            "metrics": msgspec.to_builtins(at.metrics),
            "steps": msgspec.to_builtins(at.since_checkpoint),
            "references": at.references,
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        },
        state,
    )
    return {
        WEIGHTS: safetensors.torch.save(tensors, metadata={"format": "pt"}),
        CONFIG: json.dumps(config, indent=2, sort_keys=True, default=sorted).encode(),
        STATE_FILE: state.getvalue(),
    }
