"""The numbers behind the pictures, as a table that anybody can read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.console.jobs.curves import Curves
from app.console.jobs.downsampling import Numbers

_ROWS = 60


@dataclass(frozen=True, slots=True)
class Figures:
    """A table: a row for each of some steps, evaluations first of all."""

    names: tuple[str, ...]
    rows: tuple[tuple[int, tuple[float | None, ...]], ...]
    steps: int
    """How many steps were recorded."""


def figures_of(curves: Curves) -> Figures:
    """Return the steps that the whole validation file was evaluated at, and others evenly between."""
    shown = [name for name in curves.columns if name not in ("step", "total_steps")]
    evaluated = [curves.measured(name)[0] for name in shown if name.startswith(("valid_", "full_valid_"))]
    chosen = _evenly(np.unique(np.concatenate([np.empty(0), *evaluated])), _ROWS // 2)
    others = np.setdiff1d(curves.steps, chosen)
    chosen = np.union1d(chosen, _evenly(others, _ROWS - len(chosen)))
    at = np.searchsorted(curves.steps, chosen)
    columns = [[_number(value) for value in curves.columns[name][at]] for name in shown]
    rows = zip((int(step) for step in chosen), zip(*columns, strict=True), strict=True)
    return Figures(tuple(shown), tuple(rows) if len(chosen) else (), len(curves.steps))


def _evenly(steps: Numbers, most: int) -> Numbers:
    """Return so many of the steps, the first and the last among them."""
    if len(steps) <= most:
        return steps
    return steps[np.linspace(0, len(steps) - 1, most).astype(np.intp)]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
