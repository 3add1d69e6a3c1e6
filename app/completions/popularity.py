"""Which keys most requests have, of late."""

from __future__ import annotations

from collections import Counter


class Popularity:
    """Counts requests by key. Every `window` requests all counts are halved, so that what is past fades.

    This is the aging of TinyLFU (Einziger, Friedman, Manes, https://arxiv.org/abs/1512.00727).
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._counts: Counter[str] = Counter()
        self._total = 0

    def count(self, key: str) -> float:
        """Counts a request, and returns the share of requests that have its key.

        The first requests count as if others had been made before, so a share is never overestimated.
        """
        self._counts[key] += 1
        self._total += 1
        share = self._counts[key] / max(self._total, self.window // 2)
        if self._total >= self.window:
            self._counts = Counter({each: half for each, n in self._counts.items() if (half := n // 2)})
            self._total //= 2
        return share
