"""The output items of a response, as OpenAI's specification has them."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field


class TopLogprob(Struct):
    """A token that was likely at some position."""

    token: str
    logprob: float
    bytes: list[int]


class Logprob(Struct):
    """A token of the answer, and those that were likely in its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class OutputText(Struct, tag="output_text"):
    """A text of the answer. No model here cites anything."""

    text: str
    annotations: list[Any] = field(default_factory=list[Any])
    logprobs: list[Logprob] | None = None

    def __post_init__(self) -> None:
        self.logprobs = self.logprobs or []


class ReasoningText(Struct, tag="reasoning_text"):
    """A text of the model's reasoning."""

    text: str


Part = OutputText | ReasoningText


class Message(Struct, tag="message"):
    """An answer in words."""

    id: str
    status: str
    role: str
    content: list[OutputText]


class FunctionCall(Struct, tag="function_call"):
    """A call of a function; its arguments are JSON, as the model wrote it."""

    id: str
    status: str
    call_id: str
    name: str
    arguments: str


class Reasoning(Struct, tag="reasoning"):
    """What the model thought before its answer."""

    id: str
    summary: list[Any]
    content: list[ReasoningText] | None = None
    status: str | None = None

    def __post_init__(self) -> None:
        self.content = self.content or []
        self.status = self.status or "completed"


Item = Message | FunctionCall | Reasoning
