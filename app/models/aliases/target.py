"""What a request's `model` leads to: one model, or a split of traffic between several."""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass

from app.models.adapters.served_models import ServedModel


@dataclass(frozen=True, slots=True)
class WeightedModel:
    """A model of a split, with its weight among the others."""

    model: ServedModel
    weight: float


@dataclass(frozen=True, slots=True)
class Target:
    """The models that a name stands for, one or more."""

    name: str
    models: tuple[WeightedModel, ...]
    is_alias: bool = True

    @property
    def alias(self) -> str | None:
        """The name, if it is an alias."""
        return self.name if self.is_alias else None

    def model_for(self, user: str | None) -> ServedModel:
        """Return the user's model, the same on every call while the split is; without a user, a random one.

        Weighted rendezvous hashing (https://en.wikipedia.org/wiki/Rendezvous_hashing): when weights change
        or a model leaves, only as many users move as the shares changed, so a canary that grows keeps those
        it has.
        """
        if len(self.models) == 1:
            return self.models[0].model
        seed = user or secrets.token_hex(8)
        return min(self.models, key=lambda weighted: self._distance(weighted, seed)).model

    def _distance(self, weighted: WeightedModel, seed: str) -> float:
        """Exponential with the weight as its rate: each model is nearest as often as its share says."""
        content = f"{self.name}\n{weighted.model.name}\n{seed}".encode("utf-8", "surrogatepass")
        number = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
        return -math.log((number + 1) / 2**64) / weighted.weight
