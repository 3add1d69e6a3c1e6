"""What the service needs to know of a method of fine-tuning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from app.datasets.types import Example, Format

if TYPE_CHECKING:
    from app.datasets.chat_template import ChatTemplate, TokenizedExample


class Method(ABC):
    """A method of fine-tuning. The hyperparameters that only it takes name it in `hyperparameters.py`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """A phrase for the command line's help, after the name."""
    formats: ClassVar[frozenset[Format]]
    """The formats of lines that the method trains on."""
    epochs: ClassVar[tuple[int, int]]
    """The fewest and the most epochs that `auto` chooses."""
    learning_rate_factor: ClassVar[float]
    """The method's default learning rate, relative to that of supervised fine-tuning."""
    compared: ClassVar[int]
    """Which of an example's sequences an engine's answers are compared with, as an index."""
    spec_version: ClassVar[int]
    """The version that a worker must support to train by this method (`FineTuningJob.spec_version`)."""

    @abstractmethod
    def check_format(self, example: Example) -> None:
        """Check that the method can train on the example.

        Raises:
            ExampleError: the example is another method's.
        """

    @abstractmethod
    def tokenize(self, template: ChatTemplate, example: Example) -> tuple[TokenizedExample, ...]:
        """Return the sequences that the method trains on, with their targets.

        Raises:
            ExampleError: the example is another method's, or the template cannot express it.
        """
