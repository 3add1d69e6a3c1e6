"""The model that training may continue from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Parent:
    """A fine-tuned model or a checkpoint that training continues from."""

    INHERITED: ClassVar[tuple[str, ...]] = ("lora_rank", "lora_alpha", "target_modules")
    """The hyperparameters that are its own in every job that continues from it. Workers of any version take
    them from its weights."""

    name: str
    base_model: str
    rank: int
    alpha: float
    modules: list[str]
    """The linear modules that it has weights for, as `target_modules` names them."""

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What decides the shape of its weights, and so is inherited."""
        return dict(zip(self.INHERITED, (self.rank, self.alpha, self.modules), strict=True))
