"""The pictures of a job: which lines each has, and the points to draw.

What there is to draw follows from the declared metrics, so a new family of them, such as a reward's, is drawn
without more code once it has a title here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import msgspec
import numpy as np

from app.console.jobs.curves import Curves
from app.console.jobs.downsampling import Indices, Numbers, last_of_columns, m4
from app.fine_tuning.methods.metrics import Metrics

Style = Literal["steps", "smooth", "some", "all"]
"""Each step; without spikes, such as a mean; a few validation examples; all of them."""
MIN_COLUMNS, MAX_COLUMNS = 50, 4096
_MEASURED_ON: Mapping[str, tuple[Style, str]] = {
    "train": ("steps", "Training, each step"),
    "valid": ("some", "Validation, some examples"),
    "full_valid": ("all", "Validation, all examples"),
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a picture."""

    name: str
    label: str
    style: Style


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of one quantity over the steps."""

    key: str
    title: str
    unit: str
    lines: tuple[Line, ...]

    @property
    def for_script(self) -> list[dict[str, str]]:
        """Its lines, as the page's script takes them."""
        return [asdict(line) for line in self.lines]


_TITLES = {
    "loss": ("Loss", "nats"),
    "reward_margin": ("Reward margin", "mean difference"),
    "reward_accuracy": ("Reward accuracy", "share of pairs"),
    "mean_token_accuracy": ("Accuracy", "share of tokens"),
}


_ONLY = {"reward_accuracy": "dpo", "reward_margin": "dpo"}
"""The pictures that there are for one method only."""


def _families() -> tuple[Picture, ...]:
    """Return a picture for each family of metrics: those that differ only in what they were measured on."""
    declared = {each.name for each in msgspec.structs.fields(Metrics)}
    pictures: list[Picture] = []
    for family, (title, unit) in _TITLES.items():
        lines: list[Line] = []
        for measured_on, (style, label) in _MEASURED_ON.items():
            name = f"{measured_on}_{family}"
            if name in declared:
                lines.append(Line(name, label, style))
            if style == "steps":
                lines.append(Line(f"{name}{MEAN}", "Training, running mean", "smooth"))
        pictures.append(Picture(family, title, unit, tuple(lines)))
    return tuple(pictures)


MEAN = ".mean"
PICTURES = (
    *_families(),
    Picture("learning_rate", "Learning rate", "", (Line("learning_rate", "Learning rate", "smooth"),)),
    Picture("speed", "Speed", "tokens a second", (Line("tokens_per_second", "Training", "smooth"),)),
)


def window(total_steps: int) -> int:
    """Return how many steps a running mean is of."""
    return max(5, total_steps // 50)


def pictures_for(method: str) -> tuple[Picture, ...]:
    """Return the pictures of a job that is trained by the method."""
    return tuple(each for each in PICTURES if _ONLY.get(each.key, method) == method)


def overlaid(methods: Collection[str]) -> tuple[Picture, ...]:
    """Return the pictures in which jobs of these methods are compared, with few lines for each job."""
    pictures: list[Picture] = []
    for each in PICTURES:
        if each.lines[0].style != "smooth" and _ONLY.get(each.key) in (None, *methods):
            lines = tuple(line for line in each.lines if line.style != "steps")
            pictures.append(replace(each, lines=lines))
    return tuple(pictures)


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
