"""Answers of `POST /v1/completions`: `CreateCompletionResponse`, whose chunks have the same shape."""

from __future__ import annotations

from types import NoneType

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, field
from typing_extensions import override

from app.completions.answers.sampling import Completion, SampledAnswer


class Logprobs(Struct):
    """The log-probabilities of a text's tokens. The first token of an echoed prompt has none."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class Choice(Struct, omit_defaults=True):
    """One of the `n` answers to a prompt, or what is new of it; `prompt_logprobs` is an extra.

    A default that comes from a factory is written, unlike the others, and so stands for a required null.
    """

    index: int
    text: str
    logprobs: Logprobs | None = field(default_factory=NoneType)
    finish_reason: str | None = field(default_factory=NoneType)
    prompt_logprobs: Raw | UnsetType = UNSET


class CompletionAnswer(SampledAnswer[Choice, Choice]):
    """The text that continues a prompt.

    Args:
        only_echoes: whether nothing was to be added to the prompt. An engine adds a token all the same, which
            it counts but does not show.
    """

    kind = chunk_kind = "text_completion"
    wholes = chunks = msgspec.json.Decoder(Completion[Choice])

    def __init__(
        self, *, include_usage: bool, prompt_logprobs: bool = False, only_echoes: bool = False
    ) -> None:
        super().__init__(include_usage=include_usage, prompt_logprobs=prompt_logprobs)
        self._only_echoes = only_echoes

    @override
    def shape_choice(self, choice: Choice) -> None:
        """Leaves out the prompt's log-probabilities, which engines always state with `echo`, if not asked."""
        if not self._prompt_logprobs:
            choice.prompt_logprobs = UNSET
        self.shape_chunk(choice)

    @override
    def shape_chunk(self, choice: Choice) -> None:
        """States why an answer without any token of its own ended: not how the one that was added would."""
        if self._only_echoes and choice.finish_reason is not None:
            choice.finish_reason = "length"

    @override
    def _count(self, completion: Completion[Choice]) -> None:
        if self._only_echoes and completion.usage:
            completion.usage.completion_tokens = 0
            completion.usage.total_tokens = completion.usage.prompt_tokens
        super()._count(completion)
