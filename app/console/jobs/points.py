"""The points of a job's pictures, thinned out to what can be seen."""

from __future__ import annotations

from typing import Any

import numpy as np

from app.console.jobs.curves import Curves
from app.console.jobs.downsampling import Indices, Numbers, last_of_columns, m4
from app.console.jobs.pictures import MEAN, PICTURES

MIN_COLUMNS, MAX_COLUMNS = 50, 4096


def window(total_steps: int) -> int:
    """Return how many steps a running mean is of."""
    return max(5, total_steps // 50)


def points(curves: Curves, columns: int, first: int, last: int | None) -> dict[str, Any]:
    """Return the points of every line between two steps, thinned out to what so many pixels can show."""
    columns = min(max(columns, MIN_COLUMNS), MAX_COLUMNS)
    lines: dict[str, Any] = {}
    for picture in PICTURES:
        for line in picture.lines:
            steps, values = _line(curves, line.name)
            part = _between(steps, first, last)
            steps, values = steps[part], values[part]
            if len(steps):
                thin = (
                    last_of_columns(steps, columns) if line.style == "smooth" else m4(steps, values, columns)
                )
                lines[line.name] = _as_json(steps, values, thin)
    return {"last_step": curves.last_step, "total_steps": curves.total_steps, "lines": lines}


def _line(curves: Curves, name: str) -> tuple[Numbers, Numbers]:
    size = window(curves.total_steps or curves.last_step)
    if name == "tokens_per_second":
        return curves.speed(size)
    if name.endswith(MEAN):
        steps, values = curves.measured(name.removesuffix(MEAN))
        return steps, running_mean(values, size)
    return curves.measured(name)


def running_mean(values: Numbers, size: int) -> Numbers:
    """Return, for each value, the mean of it and those before it, at most `size` of them."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - size, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _between(steps: Numbers, first: int, last: int | None) -> slice:
    """Return the points between two steps, and one on either side if there is a right end.

    So a line that leaves the picture is drawn to its edge.
    """
    start = int(np.searchsorted(steps, first))
    if last is None:
        return slice(start, None)
    return slice(max(0, start - 1), int(np.searchsorted(steps, last, side="right")) + 1)


def _as_json(steps: Numbers, values: Numbers, thin: Indices) -> list[Any]:
    # 32 bits are shown with half as many digits, and are more than a picture can show.
    return [steps[thin].astype(np.int64), values[thin].astype(np.float32)]
