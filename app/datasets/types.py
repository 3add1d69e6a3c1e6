"""The examples that lines become: a conversation, a prompt and its completion, or a preference pair."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

Format = Literal["chat", "completion", "preference", "sharegpt", "alpaca"]


class ExampleError(ValueError):
    """What is wrong with one line: where (JSON pointer), what, and what to do about it."""

    def __init__(self, code: str, message: str, pointer: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.pointer = pointer


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    """A content part; text is the only kind that a text model can learn from."""

    text: str


class FunctionCall(msgspec.Struct):
    """The function that a tool call names, its arguments as a JSON string."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    """A call that an assistant turn makes."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


Weight = Literal[0, 1]
Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


class Message(msgspec.Struct):
    """One turn; `weight: 0` keeps an assistant turn as context without learning it."""

    role: Role
    content: str | list[TextPart] | None = None
    name: str | None = None
    weight: Weight | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @property
    def is_target(self) -> bool:
        """Whether the loss is computed on this turn."""
        return self.role == "assistant" and self.weight != 0


class ChatExample(msgspec.Struct):
    """A conversation that ends with the assistant's answer."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class CompletionExample(msgspec.Struct):
    """A bare prompt and what follows it, without a chat template."""

    prompt: str
    completion: str


class PreferenceInput(msgspec.Struct):
    """The conversation that both answers of a preference pair follow."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class PreferenceExample(msgspec.Struct):
    """A conversation, an answer to it that is wanted, and one that is not."""

    input: PreferenceInput
    preferred_output: list[Message]
    non_preferred_output: list[Message]

    def chats(self) -> tuple[ChatExample, ChatExample]:
        """The conversation with the preferred answer, and with the other; only the answer is learnt."""
        context = [_as_context(message) for message in self.input.messages]
        preferred, other = (
            ChatExample([*context, *output], self.input.tools, self.input.parallel_tool_calls)
            for output in (self.preferred_output, self.non_preferred_output)
        )
        return preferred, other


def _as_context(message: Message) -> Message:
    return msgspec.structs.replace(message, weight=0) if message.role == "assistant" else message


Example = ChatExample | CompletionExample | PreferenceExample
