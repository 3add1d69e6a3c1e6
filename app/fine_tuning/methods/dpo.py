"""Direct preference optimization: the model learns to prefer one of two answers to the same prompt.

The trainer minimizes `workers.training.objectives.DPOLoss`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.datasets.types import Example, ExampleError, PreferenceExample
from app.fine_tuning.methods.method import Method

if TYPE_CHECKING:
    from app.datasets.chat_template import ChatTemplate, TokenizedExample


class DPO(Method):
    """The method `dpo`."""

    name = "dpo"
    summary = "learns from preference pairs"
    formats = frozenset({"preference"})
    epochs = (1, 3)
    """Fewer than for supervised fine-tuning, because DPO overfits sooner."""
    learning_rate_factor = 1 / 20
    """The ratio of TRL's defaults: `DPOConfig` 1e-6, `SFTConfig` 2e-5 (https://huggingface.co/docs/trl)."""
    compared = 0
    """The preferred answer's: training makes the other one so unlikely that rounding would hide the rest."""
    spec_version = 2

    def check_format(self, example: Example) -> None:
        """Check that the example is a preference pair."""
        self._pair(example)

    def tokenize(self, template: ChatTemplate, example: Example) -> tuple[TokenizedExample, ...]:
        """Return two sequences, the preferred answer's first; only the answers are targets."""
        return tuple(template.tokenize_answer(chat) for chat in self._pair(example).chats())

    def _pair(self, example: Example) -> PreferenceExample:
        if not isinstance(example, PreferenceExample):
            raise ExampleError(
                "wrong_format",
                "has one answer; the method 'dpo' learns from two: "
                "'input', 'preferred_output' and 'non_preferred_output'",
            )
        return example
