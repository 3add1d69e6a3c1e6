"""Scores of several candidates on the same questions: means, differences, intervals, paired tests.

This imports numpy, so only child processes and benchmarks import it. Where all scores are 0 or 1, everything
is exact or in closed form; graded scores take a seeded bootstrap and sign flips, drawn once for all.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.comparisons.results import Interval

Floats = NDArray[np.float64]

RESAMPLES = 4000
FLIPS = 10_000
_EXACT_FLIPS = 14
"""The largest number of differing questions for which every combination of signs is tried."""
_ROUNDING = 1e-9
_CHUNK = 4_000_000
_normal = NormalDist()


class Scores:
    """A row of scores for each candidate, a column for each question."""

    def __init__(self, rows: Sequence[Sequence[float]] | Floats, seed: int = 0) -> None:
        self.rows: Floats = np.asarray(rows, dtype=np.float64)
        self.questions: int = self.rows.shape[1]
        self.means: list[float] = self.rows.mean(axis=1).tolist()
        self._binary: list[bool] = ((self.rows == 0) | (self.rows == 1)).all(axis=1).tolist()
        self._seed = seed

    def interval(self, row: int, level: float = 0.95) -> Interval:
        """Return the interval of a candidate's mean: Wilson's for 0 and 1, else bootstrapped (BCa)."""
        values = self.rows[row]
        if self._binary[row] or values.min() == values.max():
            return wilson(self.means[row], self.questions, level)
        return _bca(values, self._resampled[:, row], level)

    def difference(self, one: int, other: int) -> float:
        """Return the mean of `one` less that of `other`."""
        return self.means[one] - self.means[other]

    def difference_interval(self, one: int, other: int, level: float = 0.95) -> Interval:
        """Return the interval of the difference: Bonett and Price's for 0 and 1, else bootstrapped (BCa)."""
        if self.is_binary(one, other):
            return bonett_price(*self.counts(one, other), self.questions, level)
        difference = self.rows[one] - self.rows[other]
        if difference.min() == difference.max():
            # Resampling would not vary: take the interval of all wins, or all losses, scaled.
            size = float(abs(difference[0]))
            whole = bonett_price(*self.counts(one, other), self.questions, level)
            return Interval(low=size * whole.low, high=size * whole.high)
        return _bca(difference, self._resampled[:, one] - self._resampled[:, other], level)

    def counts(self, one: int, other: int) -> tuple[int, int]:
        """Return on how many questions `one` has the higher score, and on how many the lower."""
        return self._wins[one][other], self._wins[other][one]

    def is_binary(self, one: int, other: int) -> bool:
        """Return whether both have only scores of 0 and 1."""
        return self._binary[one] and self._binary[other]

    def test(self, one: int, other: int) -> Literal["mcnemar", "permutation"]:
        """Return the name of the test that `p_value` uses."""
        return "mcnemar" if self.is_binary(one, other) else "permutation"

    def p_value(self, one: int, other: int) -> float:
        """Return how often chance alone would show a difference as large, in either direction.

        This is McNemar's exact test, or the paired permutation test of the mean: without a true difference,
        each question's difference might as well have had the other sign.
        """
        if self.is_binary(one, other):
            return mcnemar(*self.counts(one, other))
        difference = self.rows[one] - self.rows[other]
        if np.count_nonzero(difference) <= _EXACT_FLIPS:
            return exact_sign_flips(difference)
        least = abs(float(difference.sum())) - _ROUNDING
        extreme = int((np.abs(self._flipped[:, one] - self._flipped[:, other]) >= least).sum())
        return (extreme + 1) / (FLIPS + 1)

    def standard_error(self, one: int, other: int) -> float:
        """Return the standard error of the difference."""
        difference = self.rows[one] - self.rows[other]
        return float(difference.std(ddof=1)) / math.sqrt(self.questions) if self.questions > 1 else 0.0

    def questions_needed(self, one: int, other: int, power: float = 0.8) -> int | None:
        """Return how many questions would show the observed difference at 5 %, or None if there is none.

        This is Connor's formula (Biometrics 43, 1987), with squared differences for graded scores.
        """
        difference = self.rows[one] - self.rows[other]
        mean = float(difference.mean())
        if abs(mean) < 1e-9:
            return None
        square = float((difference**2).mean())
        root = _normal.inv_cdf(0.975) * math.sqrt(square) + _normal.inv_cdf(power) * math.sqrt(
            max(0.0, square - mean * mean)
        )
        return math.ceil((root / mean) ** 2)

    @functools.cached_property
    def _wins(self) -> list[list[int]]:
        """On how many questions each candidate has a higher score than each other one."""
        return [(row > self.rows).sum(axis=1).tolist() for row in self.rows]

    @functools.cached_property
    def _resampled(self) -> Floats:
        """The means of the bootstrap samples, shape (samples, candidates)."""
        generator = np.random.default_rng(self._seed)
        size = self.questions
        parts: list[Floats] = []
        for count in _chunks(RESAMPLES, size):
            drawn = generator.integers(0, size, size=(count, size)) + size * np.arange(count)[:, None]
            times = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
            parts.append(times @ self.rows.T / size)
        return np.concatenate(parts)

    @functools.cached_property
    def _flipped(self) -> Floats:
        """The sums of scores under random signs, shape (flips, candidates).

        The difference of two columns is the sum of the differences of their scores under the same signs.
        """
        generator = np.random.default_rng(self._seed)
        parts: list[Floats] = []
        for count in _chunks(FLIPS, self.questions):
            signs = 2.0 * generator.integers(0, 2, size=(count, self.questions), dtype=np.int8) - 1.0
            parts.append(signs @ self.rows.T)
        return np.concatenate(parts)


def wilson(share: float, trials: int, level: float = 0.95) -> Interval:
    """Return the score interval of a share (Wilson, 1927)."""
    z = _normal.inv_cdf(0.5 + level / 2)
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # At a share of 0 or 1 the interval ends there exactly, but for rounding.
    low = 0.0 if share <= 0 else max(0.0, (centre - spread) / scale)
    high = 1.0 if share >= 1 else min(1.0, (centre + spread) / scale)
    return Interval(low=low, high=high)


def bonett_price(wins: int, losses: int, trials: int, level: float = 0.95) -> Interval:
    """Return the interval of the difference of two paired shares.

    Source: Bonett and Price, J. Educ. Behav. Stat. 37, 2012.
    """
    z = _normal.inv_cdf(0.5 + level / 2)
    up, down = (wins + 1) / (trials + 2), (losses + 1) / (trials + 2)
    spread = z * math.sqrt(max(0.0, up + down - (up - down) ** 2) / (trials + 2))
    return Interval(low=max(-1.0, up - down - spread), high=min(1.0, up - down + spread))


@functools.lru_cache(maxsize=100_000)
def mcnemar(wins: int, losses: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: a fair coin for each question that differs."""
    tosses, fewer = wins + losses, min(wins, losses)
    if 2 * fewer >= tosses:
        return 1.0
    top = math.lgamma(tosses + 1) - tosses * math.log(2)
    tail = math.fsum(
        math.exp(top - math.lgamma(heads + 1) - math.lgamma(tosses - heads + 1)) for heads in range(fewer + 1)
    )
    return min(1.0, 2 * tail)


def exact_sign_flips(difference: Floats) -> float:
    """Return the two-sided p-value of the paired permutation test, from every combination of signs."""
    values = difference[difference != 0]
    signs: Floats = np.array(list(itertools.product((-1.0, 1.0), repeat=values.size)), dtype=np.float64)
    return float((np.abs(signs @ values) >= abs(float(values.sum())) - _ROUNDING).mean())


def _bca(values: Floats, resampled: Floats, level: float) -> Interval:
    """Return Efron's BCa interval of a mean, for few values as wide as Student's t."""
    mean, count = float(values.mean()), values.size
    below = float((resampled < mean).mean() + (resampled == mean).mean() / 2)
    bias = _normal.inv_cdf(min(max(below, 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    off = values - mean
    acceleration = float((off**3).sum()) / (6 * float((off**2).sum()) ** 1.5)
    reach = _student(0.5 + level / 2, count - 1) * math.sqrt(count / (count - 1))
    shares = [
        _normal.cdf(bias + (bias + z) / max(1e-6, 1 - acceleration * (bias + z))) for z in (-reach, reach)
    ]
    low, high = np.quantile(resampled, shares).tolist()
    return Interval(low=low, high=high)


def _student(share: float, freedom: int) -> float:
    """Return a quantile of Student's t, by the first terms of its expansion around the normal."""
    z = _normal.inv_cdf(share)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _chunks(total: int, width: int) -> list[int]:
    """Split `total` rows of this width into chunks that fit in memory, and return their sizes."""
    size = max(1, _CHUNK // max(1, width))
    return [min(size, total - done) for done in range(0, total, size)]
