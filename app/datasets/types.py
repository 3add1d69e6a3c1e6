"""What a line of a dataset is: a conversation, a prompt with its completion, or a preference pair."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

Format = Literal["chat", "completion", "preference", "sharegpt", "alpaca"]


class ExampleError(ValueError):
    """A line that cannot be used: the finding's code, a message, and a JSON pointer to the place."""

    def __init__(self, code: str, message: str, pointer: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.pointer = pointer


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    """A content part. Text is the only kind that a text model can be trained on."""

    text: str


class FunctionCall(msgspec.Struct):
    """The function that a tool call names, with its arguments as a JSON string."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    """A tool call that an assistant turn makes."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


Weight = Literal[0, 1]
Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


class Message(msgspec.Struct, omit_defaults=True):
    """One turn of a conversation. `weight: 0` leaves an assistant turn out of the loss."""

    role: Role
    content: str | list[TextPart] | None = None
    name: str | None = None
    weight: Weight | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    """What the assistant thought before it wrote its content; vLLM's name for it."""
    reasoning_content: str | None = None
    """The same by its older name."""

    @property
    def text(self) -> str:
        """Returns the content as one string; parts are joined as vLLM joins them."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""

    @property
    def thoughts(self) -> str | None:
        """Returns what the assistant thought, if the message has it in a field of its own."""
        return self.reasoning if self.reasoning is not None else self.reasoning_content

    @property
    def is_target(self) -> bool:
        """Returns whether the loss is computed on this turn."""
        return self.role == "assistant" and self.weight != 0


class ChatExample(msgspec.Struct):
    """A conversation that ends with the assistant's answer."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class CompletionExample(msgspec.Struct):
    """A prompt and the text that follows it, without a chat template."""

    prompt: str
    completion: str


class PreferenceInput(msgspec.Struct):
    """The conversation that both answers of a preference pair follow."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class PreferenceExample(msgspec.Struct):
    """A conversation with a preferred and a non-preferred answer to it."""

    input: PreferenceInput
    preferred_output: list[Message]
    non_preferred_output: list[Message]

    def chats(self) -> tuple[ChatExample, ChatExample]:
        """Returns the conversation with each answer, the preferred first; only the answer is a target."""
        context = [_as_context(message) for message in self.input.messages]
        preferred, other = (
            ChatExample([*context, *output], self.input.tools, self.input.parallel_tool_calls)
            for output in (self.preferred_output, self.non_preferred_output)
        )
        return preferred, other


def _as_context(message: Message) -> Message:
    return msgspec.structs.replace(message, weight=0) if message.role == "assistant" else message


Example = ChatExample | CompletionExample | PreferenceExample
