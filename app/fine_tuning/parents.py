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


FindModel = Callable[[Session, str, str], Parent | str]
"""What a project, by its id, has under a name: one of its models, or the name of what is none of them.

Raises:
    InvalidRequestError: the name is that of an alias which stands for several models.
    FailedDependencyError: it is quarantined, or its files are damaged.
    UnavailableError: the storage cannot be read now.
"""
