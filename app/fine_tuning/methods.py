"""The methods of fine-tuning, and what each learns from an example."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from app.chat_template import ChatTemplate, TokenizedExample
from app.files.examples import (
    ChatExample,
    CompletionExample,
    Example,
    ExampleError,
    Message,
    PreferenceExample,
)

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
        return tuple(template.tokenize(chat) for chat in answered(example))
    return (template.tokenize(example),)


def answered(example: PreferenceExample) -> tuple[ChatExample, ChatExample]:
    """The conversation with either answer, the preferred first; only the answer is learnt."""
    given = [_as_context(message) for message in example.input.messages]

    def with_answer(answer: Sequence[Message]) -> ChatExample:
        turns = [*given, *answer]
        return ChatExample(turns, example.input.tools, example.input.parallel_tool_calls)

    return with_answer(example.preferred_output), with_answer(example.non_preferred_output)


def chat_of(example: Example) -> ChatExample | None:
    """The conversation whose last answer is learnt; None where there is no conversation."""
    if isinstance(example, CompletionExample):
        return None
    return answered(example)[0] if isinstance(example, PreferenceExample) else example


def _as_context(message: Message) -> Message:
    return msgspec.structs.replace(message, weight=0) if message.role == "assistant" else message
