"""The pictures of a job, and which lines each has.

What there is to draw follows from the declared metrics, so a new family of them, such as a reward's, is drawn
without more code once it has a title here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

import msgspec

from app.fine_tuning.methods.metrics import Metrics

Style = Literal["steps", "smooth", "some", "all"]
"""Each step; without spikes, such as a mean; a few validation examples; all of them."""
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
