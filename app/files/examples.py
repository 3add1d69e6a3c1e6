"""A line of a training file, parsed: OpenAI's chat format or the legacy prompt/completion pair.

Format: https://platform.openai.com/docs/guides/supervised-fine-tuning#formatting-your-data
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec


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


class Message(msgspec.Struct):
    """One turn; `weight: 0` keeps an assistant turn as context without learning it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
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
    """A conversation that the assistant has yet to answer."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class PreferenceExample(msgspec.Struct):
    """A conversation and two answers to it, of which one is better."""

    input: PreferenceInput
    preferred_output: list[Message]
    non_preferred_output: list[Message]


Example = ChatExample | CompletionExample | PreferenceExample
T = TypeVar("T")

_line_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_chat_decoder = msgspec.json.Decoder(ChatExample)
_completion_decoder = msgspec.json.Decoder(CompletionExample)
_preference_decoder = msgspec.json.Decoder(PreferenceExample)


def parse_line(line: bytes) -> Example:
    """The example on one line of JSONL.

    Raises:
        ExampleError: the line is not JSON, has neither format's fields, or breaks a rule of its format.
    """
    try:
        fields = _line_decoder.decode(line)
    except UnicodeDecodeError as error:
        raise ExampleError("invalid_encoding", f"is not UTF-8 (byte {error.start + 1} of the line)") from None
    except msgspec.ValidationError:
        raise ExampleError("invalid_json", "is not a JSON object; each line is one object {…}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ExampleError("invalid_json", f"is not valid JSON: {_sentence(error)}") from None

    if "messages" in fields:
        chat = _decode(_chat_decoder, line)
        _check_chat(chat)
        return chat
    if "prompt" in fields and "completion" in fields:
        pair = _decode(_completion_decoder, line)
        if not pair.completion.strip():
            raise ExampleError("empty_completion", "has an empty completion: nothing to learn", "/completion")
        return pair
    if "input" in fields and "preferred_output" in fields:
        preference = _decode(_preference_decoder, line)
        _check_preference(preference)
        return preference
    raise ExampleError(
        "unknown_format",
        "has neither 'messages' (chat), nor 'prompt' and 'completion', nor 'input' and 'preferred_output'; "
        f"it has {', '.join(repr(name[:40]) for name in list(fields)[:5]) or 'no fields'}",
    )


def _decode(decoder: msgspec.json.Decoder[T], line: bytes) -> T:
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `")
        raise ExampleError("invalid_field", f"has a wrong field: {reason}", _pointer(path)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ExampleError("invalid_json", f"is not valid JSON: {_sentence(error)}") from None


def _check_chat(chat: ChatExample) -> None:
    messages = chat.messages
    if not messages:
        raise ExampleError("no_messages", "has no messages", "/messages")
    for position, message in enumerate(messages):
        pointer = f"/messages/{position}"
        if message.weight is not None and message.role != "assistant":
            raise ExampleError(
                "invalid_weight", "has a weight on a turn that is not the assistant's", f"{pointer}/weight"
            )
        if message.tool_calls and message.role != "assistant":
            raise ExampleError(
                "invalid_tool_call",
                "has tool_calls on a turn that is not the assistant's",
                f"{pointer}/tool_calls",
            )
        for index, call in enumerate(message.tool_calls or []):
            if not _is_json_object(call.function.arguments):
                raise ExampleError(
                    "invalid_tool_call",
                    "has tool call arguments that are not a JSON object in a string",
                    f"{pointer}/tool_calls/{index}/function/arguments",
                )
        if not message.text.strip() and not message.tool_calls:
            raise ExampleError("empty_content", f"has an empty {message.role} turn", f"{pointer}/content")
    if messages[-1].role != "assistant":
        raise ExampleError(
            "last_turn_not_assistant",
            f"ends with a {messages[-1].role} turn; the last message must be the assistant's answer",
            f"/messages/{len(messages) - 1}/role",
        )
    if not any(message.is_target for message in messages):
        raise ExampleError(
            "nothing_to_learn", "has weight 0 on every assistant turn: nothing to learn", "/messages"
        )


def _check_preference(preference: PreferenceExample) -> None:
    if not preference.input.messages:
        raise ExampleError("no_messages", "has no messages", "/input/messages")
    for name in ("preferred_output", "non_preferred_output"):
        output: list[Message] = getattr(preference, name)
        if not output or output[-1].role != "assistant":
            raise ExampleError(
                "last_turn_not_assistant", f"has a {name} that is not the assistant's answer", f"/{name}"
            )
        if not any(message.text.strip() or message.tool_calls for message in output):
            raise ExampleError("empty_content", f"has an empty {name}", f"/{name}")


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def _sentence(error: Exception) -> str:
    return str(error).removeprefix("JSON is malformed: ") or type(error).__name__


def _pointer(path: str) -> str:
    """`$.messages[0].role` as a JSON pointer."""
    return path.rstrip("`").removeprefix("$").replace("[", "/").replace("]", "").replace(".", "/")
