"""What a request's `model` leads to: one model, or a split of several."""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass

from app.models.adapters.service import ServedModel


@dataclass(frozen=True, slots=True)
class Arm:
    """A model of a split, and its weight among the others'."""

    model: ServedModel
    weight: float


@dataclass(frozen=True, slots=True)
class Target:
    """The models that a name stands for, one or more."""

    name: str
    arms: tuple[Arm, ...]
    is_alias: bool = True

    @property
    def alias(self) -> str | None:
        """The name, if it is an alias."""
        return self.name if self.is_alias else None

    def model_for(self, user: str | None) -> ServedModel:
        """The user's own model, always the same while the split is; without a user, each call draws a lot.

        Weighted rendezvous hashing (https://en.wikipedia.org/wiki/Rendezvous_hashing): when weights change
        or a model leaves, only the users move whose share did, so a canary that grows keeps those it has.
        """
        if len(self.arms) == 1:
            return self.arms[0].model
        lot = user or secrets.token_hex(8)
        return min(self.arms, key=lambda arm: self._distance(arm, lot)).model

    def _distance(self, arm: Arm, lot: str) -> float:
        """Exponential, with the weight as its rate: each arm is nearest as often as its share says."""
        content = f"{self.name}\n{arm.model.name}\n{lot}".encode("utf-8", "surrogatepass")
        number = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
        return -math.log((number + 1) / 2**64) / arm.weight
