"""The rules that an example must keep beyond its types.

To add one, raise `ExampleError` in the format's `check_…` function, or return a `Remark` from `find_remarks`
where the example can still be used. Then declare the code's severity and hint in `app.datasets.findings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import msgspec

from app.datasets.types import (
    ChatExample,
    ExampleError,
    Message,
    PreferenceExample,
    PreferenceInput,
    Role,
)


def check_chat(chat: ChatExample) -> None:
    """Checks a conversation against every rule.

    Raises:
        ExampleError: the conversation breaks a rule.
    """
    messages = chat.messages
    if not messages:
        raise ExampleError("no_messages", "has no messages", "/messages")
    _check_turns(messages, "/messages")
    if chat.tools is not None or any(message.tool_calls or message.role == "tool" for message in messages):
        _check_tools(chat, "", [("/messages", messages)])
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


def check_preference(pair: PreferenceExample) -> None:
    """Checks a preference pair against every rule.

    Raises:
        ExampleError: the pair breaks a rule.
    """
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
        _check_tools(pair.input, "/input", [("/input/messages", pair.input.messages), (f"/{name}", output)])
    if _said(pair.preferred_output) == _said(pair.non_preferred_output):
        raise ExampleError(
            "equal_outputs", "has two equal answers: there is nothing to prefer", "/non_preferred_output"
        )


class Remark(NamedTuple):
    """Something about an example that does not stop a job."""

    code: str
    message: str
    pointer: str


def find_remarks(roles: Sequence[Role], pointer: str) -> list[Remark]:
    """Returns what is unusual about a conversation's order of roles; `pointer` leads to its turns."""
    remarks: list[Remark] = []
    first = next((index for index, role in enumerate(roles) if role not in ("system", "developer")), None)
    if first is not None and roles[first] == "assistant":
        remarks.append(Remark("assistant_first", "starts with an assistant turn", f"{pointer}/{first}"))
    for index, (before, role) in enumerate(pairwise(roles), start=1):
        if role == before == "user":
            message = "has two user turns one after the other"
            remarks.append(Remark("consecutive_user_turns", message, f"{pointer}/{index}"))
            break
    return remarks


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
        if message.thoughts is not None:
            _check_thoughts(message, f"{place}/{position}")
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


def _check_thoughts(message: Message, place: str) -> None:
    name = "reasoning" if message.reasoning is not None else "reasoning_content"
    if message.role != "assistant":
        raise ExampleError(
            "invalid_reasoning", f"has {name} on a turn that is not the assistant's", f"{place}/{name}"
        )
    if message.reasoning_content not in (None, message.thoughts):
        raise ExampleError(
            "invalid_reasoning",
            "has a reasoning_content that differs from its reasoning; they are two names for the same",
            f"{place}/reasoning_content",
        )


def _said(output: Sequence[Message]) -> list[tuple[Any, ...]]:
    """Returns what an answer says and calls, whatever the ids of its calls."""
    return [
        (
            turn.text,
            turn.thoughts,
            [(call.function.name, call.function.arguments) for call in turn.tool_calls or ()],
        )
        for turn in output
    ]


def _check_tools(
    owner: ChatExample | PreferenceInput, place: str, parts: Sequence[tuple[str, Sequence[Message]]]
) -> None:
    """Checks that every call names a described tool, and that every tool turn answers a call before it.

    Args:
        owner: has the descriptions.
        place: the pointer to the owner.
        parts: the turns in their order, each part with its pointer.
    """
    known = {_tool_name(tool, f"{place}/tools/{index}") for index, tool in enumerate(owner.tools or ())}
    called: set[str] = set()
    for pointer, messages in parts:
        for position, message in enumerate(messages):
            calls = message.tool_calls or []
            for index, call in enumerate(calls):
                if call.function.name not in known:
                    raise ExampleError(
                        "unknown_tool",
                        f"calls the tool {call.function.name[:40]!r}, which is not among its 'tools'",
                        f"{pointer}/{position}/tool_calls/{index}/function/name",
                    )
                called.add(call.id)
            if len(calls) > 1 and owner.parallel_tool_calls is False:
                raise ExampleError(
                    "invalid_tool_call",
                    "has several calls in one turn, and 'parallel_tool_calls' is false",
                    f"{pointer}/{position}/tool_calls",
                )
            if message.role == "tool" and message.tool_call_id not in called:
                raise ExampleError(
                    "unknown_tool_call",
                    "has a tool turn whose 'tool_call_id' is no call before it",
                    f"{pointer}/{position}/tool_call_id",
                )


def _tool_name(tool: dict[str, Any], place: str) -> str:
    """Returns the name in a tool's description: OpenAI's `{"type": "function", …}`, or the function alone."""
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


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, RecursionError):
        return False
