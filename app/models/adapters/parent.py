"""What training may go on from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parent:
    """A fine-tuned model or a checkpoint."""

    name: str
    base_model: str
    rank: int
    alpha: float
