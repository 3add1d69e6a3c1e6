"""`POST /v1/chat/completions`: the request."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field
from typing_extensions import override

from app.completions.answers import ChatAnswer
from app.completions.schemas.sampling import ResponseFormat, SamplingParameters, Tokens
from app.completions.schemas.tools import NamedTool, Tool, ToolCall, check_tool_support
from app.core.settings import BaseModelEntry


class TextPart(BaseModel):
    """A content part; text is the only kind that these models read."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn. Fields that a client copied from an earlier answer and that mean nothing are dropped."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    """What the assistant thought before its answer: some chat templates show it to the model again."""
    reasoning_content: str | None = None
    """The same by its older name."""


class ChatCompletionRequest(SamplingParameters):
    """`POST /v1/chat/completions`."""

    path = "/v1/chat/completions"

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    @override
    def check(self, base: BaseModelEntry) -> None:
        if self.tools and self.tool_choice != "none":
            check_tool_support(base)
        super().check(base)

    @override
    def count_prompt_tokens(self, context: int) -> int:
        return min(len(self.model_dump_json(include={"messages", "tools"})), context)

    @override
    def new_answer(self) -> ChatAnswer:
        return ChatAnswer(include_usage=self.includes_usage, prompt_logprobs=self.prompt_logprobs is not None)
