"""Rendezvous hashing with bounded loads, for a thousand names in a few microseconds.

Each name has a score for each key, a hash of both, and the names with the highest scores are the key's homes.
A name that comes or goes changes only the homes of keys whose home it is. See

- Thaler, Ravishankar: "Using name-based mappings to increase hit rates", https://doi.org/10.1109/90.663936;
- Mirrokni, Thorup, Zadimoghaddam: "Consistent hashing with bounded loads", https://arxiv.org/abs/1608.01350.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import ceil

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_HALF = np.uint64(32)


class Rendezvous:
    """Names with a load each. They are given by their place in the list."""

    def __init__(self, names: Sequence[str]) -> None:
        self._seeds = np.array([hash_of(name) for name in names], np.uint64)
        self.set_loads([0.0] * len(names))

    def set_loads(self, loads: Sequence[float]) -> None:
        """Sets the load of every name."""
        self._loads = np.array(loads)
        self._load = sum(loads)

    def add_load(self, place: int, load: float) -> None:
        """Adds to the load of one name."""
        self._loads[place] += load
        self._load += load

    def choose(self, key: str, homes: int, exclude: Sequence[int], holds: Callable[[int], bool]) -> int:
        """Returns the idlest of the key's homes or, if it has its share already, one that has not.

        `holds` says which to prefer then, whose score counts only among themselves. None of `exclude` is
        returned, unless all are excluded.
        """
        scores = self._score(key)
        for place in exclude:
            scores[place] = 0
        home = self._idlest_home(scores, min(homes, len(scores) - len(exclude)))
        limit = ceil(_most_times_mean(len(scores)) * (self._load + 1) / len(scores))
        if self._loads[home] + 1 <= limit:
            return home
        scores[self._loads + 1 > limit] = 0
        held = filter(holds, range(len(scores)))
        best = max(held, key=lambda place: int(scores[place]), default=home)
        best = best if scores[best] else int(scores.argmax())
        return best if scores[best] else home

    def _score(self, key: str) -> NDArray[np.uint64]:
        """Returns each name's score for the key: both hashes, mixed as MurmurHash3 does it at its end."""
        scores = self._seeds ^ np.uint64(hash_of(key))
        scores *= _MULTIPLIERS[0]
        scores ^= scores >> _HALF
        scores *= _MULTIPLIERS[1]
        return scores

    def _idlest_home(self, scores: NDArray[np.uint64], homes: int) -> int:
        """Returns the least loaded of so many names with the highest scores, of equals the highest."""
        if homes <= 1:
            return int(scores.argmax())
        highest = np.argpartition(scores, len(scores) - homes)[-homes:]
        loads = self._loads[highest]
        idlest = highest[loads == loads.min()]
        return int(idlest[scores[idlest].argmax()])


def _most_times_mean(names: int) -> float:
    """Returns how many times the mean load one of so many names may have: nearly twice.

    Of two names it is 1.25 times, since one of them that had everything would have but twice the mean.
    """
    return 2 - 3 / names**2


def hash_of(text: str) -> int:
    """Returns 64 bits that are the same in every process."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
