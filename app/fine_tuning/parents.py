"""What training may go on from. Models are another slice's: `app.main` says who finds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class Parent:
    """A fine-tuned model or a checkpoint."""

    name: str
    base_model: str
    rank: int
    alpha: float


FindParent = Callable[[Session, str, str], Parent | None]
"""The model of a project's id and a name; None where the project has none of that name.

Raises:
    FailedDependencyError: it is quarantined, or its files are damaged.
    UnavailableError: the storage cannot be read now.
"""
