"""A line of a training file, parsed: OpenAI's chat format, its preference pairs, or a prompt/completion pair.

Formats: https://platform.openai.com/docs/guides/supervised-fine-tuning#formatting-your-data and
https://platform.openai.com/docs/guides/direct-preference-optimization. Lines in the shape of ShareGPT or
Alpaca become chat examples (`app.files.foreign_formats`), so every reader of a line gets the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, cast, get_args

import msgspec

from app.files.strict_json import escape, find_flaw

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
T = TypeVar("T")


class _PlainMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A turn of text, as nearly all are."""

    role: Role
    content: str
    weight: Weight | msgspec.UnsetType = msgspec.UNSET


class _PlainChat(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[_PlainMessage]


_plain_decoder = msgspec.json.Decoder(_PlainChat)
_line_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_chat_decoder = msgspec.json.Decoder(ChatExample)
_completion_decoder = msgspec.json.Decoder(CompletionExample)
_preference_decoder = msgspec.json.Decoder(PreferenceExample)


def parse_line(line: bytes) -> Example:
    """The example on one line of JSONL.

    Raises:
        ExampleError: the line is not strict JSON, has no format's fields, or breaks a rule of its format.
    """
    return recognise_line(line)[1]


def recognise_line(line: bytes) -> tuple[Format, Example]:
    """The example on one line of JSONL, and the format that it was written in.

    Raises:
        ExampleError: the line is not strict JSON, has no format's fields, or breaks a rule of its format.
    """
    chat = _plain_chat(line)
    if chat is None:
        return _decode_any(line)
    check_chat(chat)
    return "chat", chat


def _plain_chat(line: bytes) -> ChatExample | None:
    """The conversation on a line that is plainly sound; None where it must be looked at more closely.

    msgspec takes the last of two equal keys. Their quotation marks give them away: a line has two for each
    key and text, and those within texts. (`\\u0022` would spoil the count, and `\\u0000` is refused anyway.)
    """
    if b"\\u00" in line:
        return None
    try:
        plain = _plain_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    marks = 2
    messages: list[Message] = []
    for turn in plain.messages:
        marks += 8 + turn.content.count('"')
        if turn.weight is msgspec.UNSET:
            messages.append(Message(turn.role, turn.content))
        else:
            marks += 2
            messages.append(Message(turn.role, turn.content, weight=turn.weight))
    return ChatExample(messages) if marks == line.count(b'"') else None


def _decode_any(line: bytes) -> tuple[Format, Example]:
    if (flaw := find_flaw(line)) is not None:
        raise ExampleError(flaw.code, flaw.message, flaw.pointer)
    try:
        fields = _line_decoder.decode(line)
    except msgspec.ValidationError:
        raise ExampleError("not_an_object", "is not a JSON object; each line is one object {…}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ExampleError("invalid_json", f"is not valid JSON: {_sentence(error)}") from None

    if "messages" in fields:
        chat = decode_as(_chat_decoder, line)
        check_chat(chat)
        return "chat", chat
    if "preferred_output" in fields or "non_preferred_output" in fields:
        pair = decode_as(_preference_decoder, line)
        _check_preference(pair)
        return "preference", pair
    if "prompt" in fields and "completion" in fields:
        completion = decode_as(_completion_decoder, line)
        if not completion.completion.strip():
            raise ExampleError("empty_completion", "has an empty completion: nothing to learn", "/completion")
        return "completion", completion
    from app.files import foreign_formats  # noqa: PLC0415 - it builds on this module

    if (converted := foreign_formats.convert(fields, line)) is not None:
        return converted
    raise ExampleError(
        "unknown_format",
        "has neither 'messages' (chat), 'prompt' and 'completion', nor 'input', 'preferred_output' and "
        f"'non_preferred_output' (preference); it has "
        f"{', '.join(repr(name[:40]) for name in list(fields)[:5]) or 'no fields'}",
    )


def decode_as(decoder: msgspec.json.Decoder[T], line: bytes) -> T:
    """The line as the decoder's type.

    Raises:
        ExampleError: a field is missing or of the wrong type.
    """
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `")
        raise _wrong_field(reason, _pointer(path)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ExampleError("invalid_json", f"is not valid JSON: {_sentence(error)}") from None


def check_chat(chat: ChatExample) -> None:
    """The rules that types do not say.

    Raises:
        ExampleError: the conversation breaks one.
    """
    messages = chat.messages
    if not messages:
        raise ExampleError("no_messages", "has no messages", "/messages")
    _check_turns(messages, "/messages")
    if chat.tools is not None or any(message.tool_calls or message.role == "tool" for message in messages):
        _check_tools(messages, chat.tools)
    last = messages[-1]
    if last.role != "assistant":
        if not any(message.role == "assistant" for message in messages):
            raise ExampleError(
                "no_assistant_turn", "has no assistant turn: there is no answer to learn", "/messages"
            )
        raise ExampleError(
            "last_turn_not_assistant",
            f"ends with a {last.role} turn; the last message must be the assistant's answer",
            f"/messages/{len(messages) - 1}/role",
        )
    if last.weight == 0 and not any(message.is_target for message in messages):
        raise ExampleError(
            "nothing_to_learn", "has weight 0 on every assistant turn: nothing to learn", "/messages"
        )


def _check_preference(pair: PreferenceExample) -> None:
    if not pair.input.messages:
        raise ExampleError("no_messages", "has no messages", "/input/messages")
    _check_turns(pair.input.messages, "/input/messages")
    for name, output in (
        ("preferred_output", pair.preferred_output),
        ("non_preferred_output", pair.non_preferred_output),
    ):
        _check_turns(output, f"/{name}")
        for index, message in enumerate(output):
            if message.role not in ("assistant", "tool"):
                raise ExampleError(
                    "unexpected_role",
                    f"has a {message.role} turn in an answer; assistant and tool turns only",
                    f"/{name}/{index}/role",
                )
        if not output or output[-1].role != "assistant":
            raise ExampleError(
                "no_assistant_turn", f"has a {name} that does not end with an assistant turn", f"/{name}"
            )
    if [turn.text for turn in pair.preferred_output] == [
        turn.text for turn in pair.non_preferred_output
    ] and not (any(turn.tool_calls for turn in [*pair.preferred_output, *pair.non_preferred_output])):
        raise ExampleError(
            "equal_outputs", "has two equal answers: there is nothing to prefer", "/non_preferred_output"
        )


def _check_turns(messages: Sequence[Message], place: str) -> None:
    for position, message in enumerate(messages):
        is_assistant = message.role == "assistant"
        if message.weight is not None and not is_assistant:
            raise ExampleError(
                "invalid_weight",
                "has a weight on a turn that is not the assistant's",
                f"{place}/{position}/weight",
            )
        if message.tool_calls and not is_assistant:
            raise ExampleError(
                "invalid_tool_call",
                "has tool_calls on a turn that is not the assistant's",
                f"{place}/{position}/tool_calls",
            )
        for index, call in enumerate(message.tool_calls or ()):
            if not _is_json_object(call.function.arguments):
                raise ExampleError(
                    "invalid_tool_call",
                    "has tool call arguments that are not a JSON object in a string",
                    f"{place}/{position}/tool_calls/{index}/function/arguments",
                )
        content = message.content if isinstance(message.content, str) else message.text
        if not message.tool_calls and (not content or content.isspace()):
            raise ExampleError(
                "empty_content", f"has an empty {message.role} turn", f"{place}/{position}/content"
            )


def _check_tools(messages: Sequence[Message], tools: list[dict[str, Any]] | None) -> None:
    """Every tool has a name, every call names one, and every answer of a tool is that of a call."""
    known = {_tool_name(tool, f"/tools/{index}") for index, tool in enumerate(tools or ())}
    called: set[str] = set()
    for position, message in enumerate(messages):
        for index, call in enumerate(message.tool_calls or ()):
            if call.function.name not in known:
                raise ExampleError(
                    "unknown_tool",
                    f"calls the tool {call.function.name[:40]!r}, which is not among its 'tools'",
                    f"/messages/{position}/tool_calls/{index}/function/name",
                )
            called.add(call.id)
        if message.role == "tool" and message.tool_call_id not in called:
            raise ExampleError(
                "unknown_tool_call",
                "has a tool turn whose 'tool_call_id' is no call before it",
                f"/messages/{position}/tool_call_id",
            )


def _tool_name(tool: dict[str, Any], place: str) -> str:
    """Of a tool as OpenAI describes it, or of a function's description alone."""
    if tool.get("type", "function") != "function":
        raise ExampleError("invalid_field", "has a tool of another type than 'function'", f"{place}/type")
    function: Any = tool.get("function", tool)
    if not isinstance(function, dict):
        raise ExampleError(
            "invalid_field", "has a tool whose 'function' is not an object", f"{place}/function"
        )
    within = f"{place}/function" if "function" in tool else place
    described = cast("dict[str, Any]", function)
    name = described.get("name")
    if not isinstance(name, str) or not name:
        raise ExampleError("invalid_field", "has a tool without a name", f"{within}/name")
    for field, kind in (("description", str), ("parameters", dict)):
        if not isinstance(described.get(field), kind | None):
            wanted = "a text" if kind is str else "an object"
            raise ExampleError(
                "invalid_field", f"has a tool whose '{field}' is not {wanted}", f"{within}/{field}"
            )
    return name


def _wrong_field(reason: str, pointer: str) -> ExampleError:
    """A code of its own for the mistakes that are made most."""
    last = pointer.rsplit("/", 1)[-1]
    if reason.startswith("Invalid enum value") and last == "role":
        return ExampleError("unknown_role", f"has an unknown role; roles are {', '.join(ROLES)}", pointer)
    if last == "weight":
        return ExampleError("invalid_weight", "has a weight that is neither 0 nor 1", pointer)
    if reason.startswith("Invalid value '") and last == "type":
        kind = reason.removeprefix("Invalid value '").removesuffix("'")
        return ExampleError(
            "unsupported_content",
            f"has a content part of type {kind[:40]!r}: only text can be learnt",
            pointer.removesuffix("/type"),
        )
    if reason.startswith("Object missing required field"):
        pointer = f"{pointer}/{escape(reason.split('`')[1])}"
        return ExampleError("missing_field", f"lacks a field: {reason}", pointer)
    return ExampleError("invalid_field", f"has a wrong field: {reason}", pointer)


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
