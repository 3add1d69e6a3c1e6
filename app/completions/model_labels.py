"""Which models have metrics of their own: those that are asked most, since adapters are many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

OTHER = "other"
MOST_MODELS = 20
_LEAD = 2
"""A model takes the place of another that has a label if it was asked this many times as often."""
_HALVED_AFTER = 10_000
"""The requests after which all that came before count half."""


class ModelLabels:
    """The labels of models. What they are counted under changes seldom, and never has more values than there
    are labels."""

    def __init__(self, forget: Callable[[str], None], most: int = MOST_MODELS) -> None:
        """`forget` is called with a label that is not used any more."""
        self._forget = forget
        self._most = most
        self._asked: Counter[str] = Counter()
        self._labelled: set[str] = set()
        self._requests = 0

    def label(self, model: str) -> str:
        """Count a request, and return the label of its model: its name, or `other`."""
        self._age()
        self._asked[model] += 1
        if model in self._labelled:
            return model
        if len(self._labelled) >= self._most:
            least = min(self._labelled, key=self._asked.__getitem__)
            if self._asked[model] < _LEAD * max(1, self._asked[least]):
                return OTHER
            self._labelled.remove(least)
            self._forget(least)
        self._labelled.add(model)
        return model

    def _age(self) -> None:
        self._requests += 1
        if self._requests >= _HALVED_AFTER:
            self._requests = 0
            self._asked = Counter({model: count // 2 for model, count in self._asked.items() if count > 1})
