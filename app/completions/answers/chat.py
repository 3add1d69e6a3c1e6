"""Answers of `POST /v1/chat/completions`: `CreateChatCompletionResponse` and its chunks."""

from __future__ import annotations

from types import NoneType

import msgspec
from msgspec import Struct, field
from typing_extensions import override

from app.completions.answers.sampling import Completion, SampledAnswer


class TopLogprob(Struct):
    """A token that was likely at some position."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(Struct):
    """`ChatCompletionTokenLogprob`: a token of the answer, and those that were likely in its place."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = field(default_factory=list[TopLogprob])


class Logprobs(Struct):
    """The log-probabilities of an answer's tokens. No model here refuses in the specification's sense."""

    content: list[TokenLogprob] | None = None
    refusal: list[TokenLogprob] | None = None


class Function(Struct):
    """What a tool call calls: `arguments` is JSON, as the model wrote it."""

    name: str
    arguments: str


class ToolCall(Struct):
    """`ChatCompletionMessageToolCall`."""

    id: str
    function: Function
    type: str = "function"


class Message(Struct, omit_defaults=True):
    """`ChatCompletionResponseMessage`; `reasoning` (in older engines `reasoning_content`) is an extra.

    A default that comes from a factory is written, unlike the others, and so stands for a required null.
    """

    role: str
    content: str | None = field(default_factory=NoneType)
    refusal: str | None = field(default_factory=NoneType)
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None

    def __post_init__(self) -> None:
        if self.tool_calls:  # beside the calls that a request demands, vLLM gives an empty text
            self.content = self.content or None


class WholeChoice(Struct):
    """One of the `n` answers."""

    index: int
    message: Message
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class FunctionDelta(Struct, omit_defaults=True):
    """What is new of a function call."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Struct, omit_defaults=True):
    """`ChatCompletionMessageToolCallChunk`."""

    index: int
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


class Delta(Struct, omit_defaults=True):
    """`ChatCompletionStreamResponseDelta`, with the same extras as `Message`."""

    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Struct):
    """What is new of one of the `n` answers."""

    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class ChatAnswer(SampledAnswer[WholeChoice, ChunkChoice]):
    """The answer to a conversation."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    wholes = msgspec.json.Decoder(Completion[WholeChoice])
    chunks = msgspec.json.Decoder(Completion[ChunkChoice])

    def __init__(self, *, include_usage: bool, prompt_logprobs: bool = False) -> None:
        super().__init__(include_usage=include_usage, prompt_logprobs=prompt_logprobs)
        self._begun = set[int]()
        self._called = set[int]()

    @override
    def shape_choice(self, choice: WholeChoice) -> None:
        """Says that calls ended it only if there are some: vLLM says so wherever they are required."""
        if choice.finish_reason == "tool_calls" and not choice.message.tool_calls:
            choice.finish_reason = "stop"

    @override
    def shape_chunk(self, choice: ChunkChoice) -> None:
        """Names the role in a choice's first delta, and only there; and the reason of its end as above."""
        choice.delta.role = None if choice.index in self._begun else "assistant"
        self._begun.add(choice.index)
        if choice.delta.tool_calls:
            self._called.add(choice.index)
        if choice.finish_reason == "tool_calls" and choice.index not in self._called:
            choice.finish_reason = "stop"
