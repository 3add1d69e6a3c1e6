"""What the answers to both kinds of completion have in common."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from app.completions.answers.answer import Answer
from app.completions.vllm_client import RetryableError, broken_off

_BROKEN_OFF = ("abort", "error")
_FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")


class PromptTokensDetails(Struct, omit_defaults=True):
    """Of the prompt's tokens: those whose keys and values the engine still had."""

    cached_tokens: int | None = None


class CompletionTokensDetails(Struct, omit_defaults=True):
    """Of the answer's tokens: those of thoughts."""

    reasoning_tokens: int | None = None


class Usage(Struct, omit_defaults=True):
    """`CompletionUsage`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class Choice(Protocol):
    """One of the `n` answers, or of a chunk what is new in it."""

    finish_reason: str | None


WholeT = TypeVar("WholeT", bound=Choice)
ChunkT = TypeVar("ChunkT", bound=Choice)
ChoiceT = TypeVar("ChoiceT", bound=Choice)


class Completion(Struct, Generic[ChoiceT], omit_defaults=True):
    """A completion, or a chunk of one."""

    id: str
    created: int
    model: str
    choices: list[ChoiceT]
    object: str = ""
    """Set for every engine, since vLLM leaves fields out that it has not set itself."""
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | None = None
    prompt_logprobs: Raw | UnsetType = UNSET
    """An extra, of conversations; bare prompts have theirs in the choices. Not read, as it may be long."""


class SampledAnswer(Answer, Generic[WholeT, ChunkT]):
    """An answer in choices.

    Args:
        include_usage: the stream's option, whether its end states the usage.
        prompt_logprobs: whether they were asked for; an engine may state them unasked.
    """

    kind: str
    chunk_kind: str
    wholes: msgspec.json.Decoder[Completion[WholeT]]
    chunks: msgspec.json.Decoder[Completion[ChunkT]]

    def __init__(self, *, include_usage: bool, prompt_logprobs: bool = False) -> None:
        super().__init__()
        self._include_usage = include_usage
        self._prompt_logprobs = prompt_logprobs

    def whole(self, content: bytes) -> bytes:
        """Returns the completion."""
        completion = _read(self.wholes, content)
        completion.object = self.kind
        for choice in completion.choices:
            choice.finish_reason = _finish_reason(choice.finish_reason or "stop")
            self.shape_choice(choice)
        if not self._prompt_logprobs:
            completion.prompt_logprobs = UNSET
        self._count(completion)
        return msgspec.json.encode(completion)

    def event(self, data: bytes) -> bytes:
        """Returns a chunk. Engines are always asked for the usage; who did not ask for it does not see it."""
        if data == b"[DONE]":
            self.has_ended = True
            return b"data: [DONE]\n\n"
        chunk = _read(self.chunks, data)
        chunk.object = self.chunk_kind
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                choice.finish_reason = _finish_reason(choice.finish_reason)
            self.shape_chunk(choice)
        self._count(chunk)
        if chunk.choices:
            chunk.usage = None if self._include_usage else UNSET
        elif not self._include_usage or not chunk.usage:
            return b""
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def shape_choice(self, choice: WholeT) -> None:
        """Changes what is particular to this kind of completion in a choice of a whole answer."""

    def shape_chunk(self, choice: ChunkT) -> None:
        """Changes what is particular to this kind of completion in a choice of a chunk."""

    def _count(self, completion: Completion[WholeT] | Completion[ChunkT]) -> None:
        if usage := completion.usage:
            self.prompt_tokens = usage.prompt_tokens
            self.completion_tokens = usage.completion_tokens


def _read(decoder: msgspec.json.Decoder[Completion[ChoiceT]], content: bytes) -> Completion[ChoiceT]:
    """Returns a completion or chunk. An engine that fails in a stream sends an error in its place."""
    try:
        return decoder.decode(content)
    except msgspec.DecodeError as error:
        raise RetryableError(broken_off()) from error


def _finish_reason(said: str) -> str:
    """Returns OpenAI's word for why an answer ended; vLLM has more words than it.

    An engine that is about to stop aborts its requests: such an answer is not what the model had to say. Any
    other end of the engine's own making, such as `repetition`, is one before the model's.
    """
    if said in _BROKEN_OFF:
        raise RetryableError(broken_off())
    return said if said in _FINISH_REASONS else "length"
