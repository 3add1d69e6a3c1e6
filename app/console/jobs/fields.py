"""The fields of a job's form: those of its hyperparameters follow from the declarations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app.fine_tuning.methods import METHODS
from app.fine_tuning.methods.hyperparameters import (
    Hyperparameter,
    auto_in_words,
    range_in_words,
    taken_by,
)

Kind = Literal["number", "words", "names"]
PREFIX = "hp."
"""What the names of fields of hyperparameters begin with."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field for one hyperparameter."""

    name: str
    label: str
    kind: Kind
    words: tuple[str, ...]
    meaning: str
    auto: str
    """What happens if it is left empty."""
    range: str
    is_common: bool
    """Whether most people who set anything set it: the others are folded away."""

    @property
    def key(self) -> str:
        """The name of its form field."""
        return PREFIX + self.name


def fields_of(method: str) -> tuple[Field, ...]:
    """Return the fields of a method's hyperparameters, in the order of their declaration."""
    return tuple(_field(each) for each in taken_by(METHODS[method]))


def label_of(name: str) -> str:
    """Return the name of a hyperparameter, or of another value of a request, as people read it."""
    return name.removeprefix("n_").replace("_", " ")


def _field(declared: Hyperparameter) -> Field:
    return Field(
        name=declared.name,
        label=label_of(declared.name).capitalize(),
        kind="number" if declared.is_number else "names" if declared.takes_names else "words",
        words=declared.words,
        meaning=_plain(declared.meaning),
        auto=_plain(auto_in_words(declared)),
        range=_plain(range_in_words(declared)),
        is_common=declared.is_openais or bool(declared.methods),
    )


def _plain(markdown: str) -> str:
    return markdown.replace("`", "")
