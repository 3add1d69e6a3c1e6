"""Supervised fine-tuning: the model learns to write the assistant's turns, or a prompt's completion.

The trainer minimizes `workers.training.objectives.CrossEntropyLoss`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.datasets.types import ChatExample, CompletionExample, Example, ExampleError, PreferenceExample
from app.fine_tuning.methods.method import Method

if TYPE_CHECKING:
    from app.datasets.chat_template import ChatTemplate, TokenizedExample


class Supervised(Method):
    """The method `supervised`."""

    name = "supervised"
    summary = "learns from answers"
    formats = frozenset({"chat", "completion", "sharegpt", "alpaca"})
    epochs = (3, 10)
    learning_rate_factor = 1.0
    compared = -1
    """The last, which has most of what the template writes differently in earlier turns."""
    spec_version = 1

    def check_format(self, example: Example) -> None:
        """Check that the example has one answer."""
        self._with_one_answer(example)

    def tokenize(self, template: ChatTemplate, example: Example) -> tuple[TokenizedExample, ...]:
        """Return the sequences whose targets are the assistant's turns or the completion: mostly one."""
        return template.tokenize(self._with_one_answer(example))

    def _with_one_answer(self, example: Example) -> ChatExample | CompletionExample:
        if isinstance(example, PreferenceExample):
            raise ExampleError(
                "wrong_format",
                "has a preferred and a non-preferred output, which the method 'dpo' learns from, "
                "and 'supervised' does not",
            )
        return example
