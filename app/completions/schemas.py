"""Completion requests: exactly the fields that may reach an engine.

Any other field (`chat_template`, `documents`, `extra_args`, …) is refused by name, and so are content parts
other than text, so that no request can make an engine fetch a URL or run a template. OpenAI's fields that
have no meaning here are accepted and dropped.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, strict=True)]
Choices = Annotated[int, Field(ge=1, le=16, strict=True)]
Stop = str | Annotated[list[str], Field(max_length=16)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)]


class TextPart(BaseModel):
    """A content part; text is the only kind that these models read."""

    type: Literal["text"]
    text: str


class FunctionCall(BaseModel):
    """The function that a tool call names, its arguments as a JSON string."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that an earlier assistant turn made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


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


class FunctionDefinition(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(extra="forbid")

    name: str


class NamedTool(BaseModel):
    """The one tool that the model must call."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(BaseModel):
    """The schema that an answer must fit."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """The shape of the answer."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool | None = None


class SamplingParameters(BaseModel):
    """The parameters that both kinds of completion share."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=255)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    n: Choices | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=300)] | None
    ) = None

    # vLLM's own fields, which OpenAI's client sends with `extra_body`.
    top_k: Annotated[int, Field(ge=-1, strict=True)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] | None = None
    min_tokens: Annotated[int, Field(ge=0, strict=True)] | None = None

    # OpenAI's fields that are accepted and not passed on.
    user: Annotated[str | None, Field(exclude=True)] = None
    metadata: Annotated[dict[str, Any] | None, Field(exclude=True)] = None
    store: Annotated[bool | None, Field(exclude=True)] = None
    service_tier: Annotated[str | None, Field(exclude=True)] = None
    prompt_cache_key: Annotated[str | None, Field(exclude=True)] = None
    safety_identifier: Annotated[str | None, Field(exclude=True)] = None


class ChatCompletionRequest(SamplingParameters):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None


class CompletionRequest(SamplingParameters):
    """`POST /v1/completions`, the legacy kind: a bare prompt, without a chat template."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=64)]
    logprobs: Annotated[int, Field(ge=0, le=5, strict=True)] | None = None
    echo: bool | None = None
    suffix: None = None
