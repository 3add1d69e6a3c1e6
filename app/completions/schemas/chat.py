"""`POST /v1/chat/completions`: the request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError
from typing_extensions import override

from app.completions.answers import ChatAnswer
from app.completions.schemas.beginning import beginning_of
from app.completions.schemas.prompts import MAX_PARTS, check_count, most_tokens
from app.completions.schemas.reasoning import ReasoningEffort, check_reasoning
from app.completions.schemas.refusals import by_json_type, only, refused
from app.completions.schemas.sampling import ResponseFormat, SamplingParameters, Tokens
from app.completions.schemas.tools import NamedTool, ToolCall, ToolChoice, Tools, check_tools
from app.core.errors import InvalidRequestError
from app.core.settings import BaseModelEntry

_MOST_MESSAGES = 2**15
"""Each of them is at least one token of the prompt."""
_MOST_CALLS = 128


def _refuse_media(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if isinstance(kind, str) and kind != "text":
        reason = f"these models read text only, not '{kind[:64]}'"
        raise PydanticCustomError("unsupported_value", "{reason}", {"reason": reason})
    return part  # pyright: ignore[reportUnknownVariableType]


class TextPart(BaseModel):
    """A content part; text is the only kind that these models read."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("a text")]
    | Annotated[
        list[Annotated[TextPart, BeforeValidator(_refuse_media)]],
        Field(max_length=MAX_PARTS, fail_fast=True),
        Tag("a list"),
    ],
    by_json_type("a text", "a list of parts"),
]
TemplateValue = (
    bool | Annotated[int, Field(ge=0, le=1_000_000)] | Annotated[str, StringConstraints(max_length=64)]
)


class ChatMessage(BaseModel):
    """One turn. Fields that a client copied from an earlier answer and that mean nothing are dropped."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=_MOST_CALLS, fail_fast=True)] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    """What the assistant thought before its answer: some chat templates show it to the model again."""
    reasoning_content: str | None = None
    """The same by its older name."""
    function_call: Annotated[None, refused("give the call in 'tool_calls' instead")] = None

    @property
    def text(self) -> str:
        """The content without the bounds of its parts."""
        parts = self.content or ""
        return parts if isinstance(parts, str) else "".join(part.text for part in parts)


class ChatCompletionRequest(SamplingParameters):
    """`POST /v1/chat/completions`."""

    path = "/v1/chat/completions"

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=_MOST_MESSAGES, fail_fast=True)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: ReasoningEffort | None = None
    verbosity: Annotated[
        Literal["medium"] | None,
        only("medium", says=lambda _: "these models have one verbosity; leave it out, or send 'medium'"),
        Field(exclude=True),
    ] = None
    modalities: Annotated[
        list[
            Annotated[
                Literal["text"],
                only("text", says=lambda kind: f"these models answer with text, not '{kind}'"),
            ]
        ]
        | None,
        Field(exclude=True, max_length=8),
    ] = None
    chat_template_kwargs: Annotated[dict[str, TemplateValue], Field(max_length=16)] | None = None
    """vLLM's own field: variables for the chat template, of those that the base's entry allows."""

    # OpenAI's fields that are refused by name.
    functions: Annotated[None, refused("use 'tools' instead")] = None
    function_call: Annotated[None, refused("use 'tool_choice' instead")] = None
    audio: Annotated[None, refused("these models answer with text only")] = None
    prediction: Annotated[None, refused("predicted outputs are not supported; leave it out")] = None
    web_search_options: Annotated[None, refused("these models do not search the web; leave it out")] = None

    @override
    def beginning(self) -> str:
        return beginning_of((message.role, message.text) for message in self.messages)

    @override
    def _withheld(self) -> set[str]:
        """With `tool_choice: none` the model does not see the tools, so that it calls none."""
        without_tools = not self.tools or self.tool_choice == "none"
        return super()._withheld() | (
            {"tools", "tool_choice", "parallel_tool_calls"} if without_tools else set()
        )

    @override
    def check(self, base: BaseModelEntry) -> None:
        parts = sum(len(turn.content) for turn in self.messages if isinstance(turn.content, list))
        check_count(len(self.messages) + parts, base, "messages")
        named = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        choice = self.tool_choice if isinstance(self.tool_choice, str) else "auto"
        check_tools(base, [tool.function for tool in self.tools or ()], choice, named)
        check_reasoning(base, self.reasoning_effort, "reasoning_effort")
        _check_template_kwargs(base, self.chat_template_kwargs or {})
        super().check(base)

    @override
    def count_logprobs(self, context: int) -> int:
        """One answer of any length is not counted: it has what fits the context, token by token."""
        counted = super().count_logprobs(context)
        max_tokens = self.max_completion_tokens or self.max_tokens
        if not self.logprobs or (max_tokens is None and (self.n or 1) == 1):
            return counted
        return counted + min(max_tokens or context, context) * (self.n or 1) * ((self.top_logprobs or 0) + 1)

    @override
    def count_prompt_tokens(self, context: int) -> int:
        return min(most_tokens(self.model_dump_json(include={"messages", "tools"})), context)

    @override
    def count_answers(self) -> int:
        return self.n or 1

    @override
    def count_tokens(self, context: int) -> int:
        max_tokens = self.max_completion_tokens or self.max_tokens or context
        return (self.n or 1) * min(self.count_prompt_tokens(context) + max_tokens, context)

    @override
    def most_answer_tokens(self, context: int) -> tuple[int, bool]:
        max_tokens = self.max_completion_tokens or self.max_tokens
        return (self.n or 1) * min(max_tokens or context, context), max_tokens is not None

    @override
    def new_answer(self) -> ChatAnswer:
        return ChatAnswer(include_usage=self.includes_usage, prompt_logprobs=self.prompt_logprobs is not None)


def _check_template_kwargs(base: BaseModelEntry, variables: dict[str, Any]) -> None:
    for name in variables:
        if name not in base.allowed_template_kwargs:
            allowed = ", ".join(base.allowed_template_kwargs) or "none"
            raise InvalidRequestError(
                f"Unsupported parameter 'chat_template_kwargs.{name[:64]}': of the variables of the chat "
                f"template, requests to '{base.name}' may set: {allowed}.",
                code="unsupported_parameter",
                param=f"chat_template_kwargs.{name[:64]}",
            )
