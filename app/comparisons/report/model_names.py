"""Short labels for the long names of fine-tuned models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_TUNED = re.compile(r"ft:[^:]+:[^:]+:(?P<suffix>[^:]*):(?P<id>[^:]+)(?::ckpt-step-(?P<step>\d+))?")


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return a label for each name; different names get different labels.

    A fine-tuned model, `ft:<base>:<project>:<suffix>:<id>`, is labelled with its suffix, and a checkpoint
    with its step as well. Models that share a suffix are labelled with their ids, too, and a model without a
    suffix with its id alone. Any other name is its own label.
    """
    labels = {name: _label(name) for name in names}
    for clearer in (_label_with_id, str):
        counts = Counter(labels.values())
        labels = {name: label if counts[label] == 1 else clearer(name) for name, label in labels.items()}
    return labels


def _label(name: str) -> str:
    parts = _TUNED.fullmatch(name)
    return _with_step(parts["suffix"] or parts["id"], parts["step"]) if parts else name


def _label_with_id(name: str) -> str:
    parts = _TUNED.fullmatch(name)
    return _with_step(f"{parts['suffix']}:{parts['id']}", parts["step"]) if parts else name


def _with_step(label: str, step: str | None) -> str:
    return f"{label}, step {step}" if step else label
