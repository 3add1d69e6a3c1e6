"""Numbers measured several times, by name."""

from __future__ import annotations

import statistics
import sys


class Measurements:
    """The values that were measured in every round, by name."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        self._values.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        return statistics.median(self._values[name])

    def ratio(self, name: str, other: str) -> float:
        """Returns the ratio of two medians."""
        return round(self.median(name) / self.median(other), 3)

    def median_difference(self, name: str, other: str) -> float:
        """Returns the median of the rounds' differences."""
        pairs = zip(self._values[name], self._values[other], strict=True)
        return round(statistics.median(mine - others for mine, others in pairs), 3)

    def last(self) -> str:
        """Returns the newest round as text."""
        return ", ".join(f"{name} {values[-1]:.4g}" for name, values in self._values.items())

    def spreads(self) -> dict[str, list[float]]:
        """Returns the median, minimum and maximum of every value."""
        return {
            name: [round(number, 3) for number in (statistics.median(values), min(values), max(values))]
            for name, values in self._values.items()
        }


def percentile(values: list[float], percent: int) -> float:
    """Returns the smallest value that a given percentage of the values does not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def progress(line: str) -> None:
    """Prints progress to stderr, since stdout is for the results."""
    print(line, file=sys.stderr, flush=True)
