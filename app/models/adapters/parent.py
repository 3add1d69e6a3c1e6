"""The model that training may continue from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parent:
    """A fine-tuned model or a checkpoint that training continues from."""

    name: str
    base_model: str
    rank: int
    alpha: float
