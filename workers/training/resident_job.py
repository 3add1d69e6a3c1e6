"""A job among those whose adapters are in memory together, over one base model: each takes a step in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from peft.tuners.lora import LoraLayer
from torch import nn

from workers.training.activation_checkpointing import checkpoint_activations, checkpoints_activations
from workers.training.model import WarmBase
from workers.training.protocol import TrainingSpec
from workers.training.training_state import RandomState


@dataclass(frozen=True, slots=True)
class Aside:
    """What a job keeps between two of its turns: all that it has changed in the base and in this process."""

    layers: list[tuple[nn.Module, str, LoraLayer]]
    """The adapter's layers, each with the module that it is in and its name there."""
    peft_config: Any
    attention: str
    recomputes_activations: bool
    random: RandomState

    @classmethod
    def set(cls, base: WarmBase) -> Aside:
        """Take the job out of the base, which is then as it was before the job's adapter was added."""
        model = base.model
        layers: list[tuple[nn.Module, str, LoraLayer]] = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if isinstance(child, LoraLayer)
        ]
        for parent, name, layer in layers:
            setattr(parent, name, layer.base_layer)
        recomputes = checkpoints_activations(model)
        checkpoint_activations(model, on=False)
        config = vars(model).pop("peft_config", None)
        attention = cast(Any, model.config)._attn_implementation
        return cls(layers, config, attention, recomputes, RandomState.read())

    def put_back(self, base: WarmBase) -> None:
        """Put the job back into the base, which is then as it was when the job was set aside."""
        model = cast(Any, base.model)
        for parent, name, layer in self.layers:
            setattr(parent, name, layer)
        if self.peft_config is not None:
            model.peft_config = self.peft_config
        if model.config._attn_implementation != self.attention:
            model.set_attn_implementation(self.attention)
        checkpoint_activations(base.model, on=self.recomputes_activations)
        self.random.restore()


class ResidentJob:
    """A job that is trained step by step, on a base that other jobs may have between its steps."""

    def __init__(self, spec: TrainingSpec, base: WarmBase, steps: Iterator[None]) -> None:
        """`steps` is `training_loop.train` on this base."""
        self.spec = spec
        self.has_begun = False
        self._base = base
        self._steps = steps
        self._aside: Aside | None = None

    def take_step(self) -> bool:
        """Train to the end of the next step; return whether there are more."""
        self.has_begun = True
        if self._aside is not None:
            self._aside.put_back(self._base)
            self._aside = None
        return next(self._steps, self) is None

    def set_aside(self) -> None:
        """Leave the base to other jobs until the next step."""
        if self.has_begun and self._aside is None:
            self._aside = Aside.set(self._base)
