"""The methods of fine-tuning, and what each learns from an example."""

from __future__ import annotations

from app.datasets.chat_template import ChatTemplate, TokenizedExample
from app.datasets.types import ChatExample, CompletionExample, Example, ExampleError, PreferenceExample

SUPPORTED_METHODS = ("supervised", "dpo")


def check_format(method: str, example: Example) -> None:
    """The example is one that the method learns from.

    Raises:
        ExampleError: it is another method's.
    """
    is_pair = isinstance(example, PreferenceExample)
    if is_pair and method != "dpo":
        raise ExampleError(
            "wrong_format",
            "has a preferred and a non-preferred output, which the method 'dpo' learns from, "
            f"and '{method}' does not",
        )
    if not is_pair and method == "dpo":
        raise ExampleError(
            "wrong_format",
            "has one answer; the method 'dpo' learns from two: "
            "'input', 'preferred_output' and 'non_preferred_output'",
        )


def tokenize(template: ChatTemplate, method: str, example: Example) -> tuple[TokenizedExample, ...]:
    """What the method learns from the example: one sequence; for DPO two, the preferred answer's first.

    Raises:
        ExampleError: it is another method's example, or the template cannot express it.
    """
    check_format(method, example)
    if isinstance(example, PreferenceExample):
        return tuple(template.tokenize(chat) for chat in example.chats())
    return (template.tokenize(example),)


def chat_of(example: Example) -> ChatExample | None:
    """The conversation whose last answer is learnt; None where there is no conversation."""
    if isinstance(example, CompletionExample):
        return None
    return example.chats()[0] if isinstance(example, PreferenceExample) else example
