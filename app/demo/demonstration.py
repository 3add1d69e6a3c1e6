"""What a demo shows: the data that it trains on, and the prompts that it compares the trained model with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Candidate = dict[str, Any]
"""A candidate of a comparison, as the API takes it."""
Upload = Callable[[str, bytes], str]
"""Uploads a file of examples under a name, and returns its id."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A dataset with everything that is needed to train on it, compare and promote."""

    title: str
    training_file: Path
    heldout_file: Path
    suffix: str
    """Part of the trained model's name."""
    hyperparameters: dict[str, Any]
    grader: str
    max_answer_tokens: int
    """Enough for the longest correct answer."""
    alias: str
    """The alias that the gate may move to the trained model."""
    rules: dict[str, Any]
    """The gate's rules."""
    prompted: Callable[[Upload], list[Candidate]]
    """Returns the best prompts that we could write, as candidates."""
