"""The model that training may continue from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Parent:
    """A fine-tuned model or a checkpoint that training continues from."""

    name: str
    base_model: str
    rank: int
    alpha: float
    modules: list[str]
    """The linear modules that it has weights for, as `target_modules` names them."""

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What decides the shape of its weights, and so is inherited."""
        return {"lora_rank": self.rank, "lora_alpha": self.alpha, "target_modules": self.modules}
