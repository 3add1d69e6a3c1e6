"""Converts lines in the ShareGPT and Alpaca formats to chat examples.

ShareGPT: `{"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}], "system": …}`. A
`function_call` turn holds a call or a list of calls as JSON, an `observation` turn a result, and `tools` the
descriptions as JSON.
Alpaca: `{"instruction": …, "input": …, "output": …}`; the input, where there is one, follows the instruction.
Source: https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md, which documents both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from app.datasets.decoding import decode_as
from app.datasets.rules import check_chat
from app.datasets.types import (
    ChatExample,
    ExampleError,
    Format,
    FunctionCall,
    Message,
    Role,
    ToolCall,
)

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
}


class _Turn(msgspec.Struct):
    speaker: str = msgspec.field(name="from")
    value: str


class _ShareGpt(msgspec.Struct):
    conversations: list[_Turn]
    system: str | None = None
    tools: str | None = None


class _Call(msgspec.Struct):
    name: str
    arguments: dict[str, Any]


class _Alpaca(msgspec.Struct):
    instruction: str
    output: str
    input: str | None = None
    system: str | None = None


_sharegpt_decoder = msgspec.json.Decoder(_ShareGpt)
_calls_decoder = msgspec.json.Decoder(_Call | list[_Call])
_tools_decoder = msgspec.json.Decoder(list[dict[str, Any]])
_alpaca_decoder = msgspec.json.Decoder(_Alpaca)


def convert(fields: Mapping[str, Any], line: bytes) -> tuple[Format, ChatExample] | None:
    """Returns the line's format and conversation, or None if it is in neither format.

    Raises:
        ExampleError: the example breaks a rule; the pointer leads into the line as it was written.
    """
    if "conversations" in fields:
        return "sharegpt", _from_sharegpt(decode_as(_sharegpt_decoder, line))
    if "instruction" in fields and "output" in fields:
        return "alpaca", _from_alpaca(decode_as(_alpaca_decoder, line))
    return None


def _from_sharegpt(example: _ShareGpt) -> ChatExample:
    messages = [Message("system", example.system)] if example.system else []
    before = len(messages)
    waiting: list[str] = []
    """The ids of the calls whose results come next."""
    for index, turn in enumerate(example.conversations):
        role = _ROLES.get(turn.speaker)
        if role is None:
            raise ExampleError(
                "unknown_role",
                f"has a turn from {turn.speaker[:40]!r}; known are {', '.join(_ROLES)}",
                f"/conversations/{index}/from",
            )
        if turn.speaker == "function_call":
            calls = _calls(turn.value, index)
            waiting = [call.id for call in calls]
            messages.append(Message(role, tool_calls=calls))
        elif role == "tool":
            answered = waiting.pop(0) if len(waiting) > 1 else next(iter(waiting), None)
            messages.append(Message(role, turn.value, tool_call_id=answered))
        else:
            messages.append(Message(role, turn.value))

    def pointer(path: str) -> str:
        if path.startswith("/tools"):
            return "/tools"
        shifted = re.sub(r"\d+", lambda number: str(int(number[0]) - before), path, count=1)
        return "/system" if "-" in shifted else _renamed(shifted)

    return _checked(ChatExample(messages, _tools(example.tools)), pointer)


def _calls(value: str, index: int) -> list[ToolCall]:
    try:
        made: _Call | list[_Call] = _calls_decoder.decode(value)
    except (msgspec.DecodeError, RecursionError):
        raise ExampleError(
            "invalid_tool_call",
            "has a function_call turn that is no JSON object with 'name' and 'arguments'",
            f"/conversations/{index}/value",
        ) from None
    calls = made if isinstance(made, list) else [made]
    return [
        ToolCall(
            f"call_{index}_{number}", FunctionCall(call.name, msgspec.json.encode(call.arguments).decode())
        )
        for number, call in enumerate(calls)
    ]


def _tools(value: str | None) -> list[dict[str, Any]] | None:
    if not value:
        return None
    try:
        return _tools_decoder.decode(value)
    except (msgspec.DecodeError, RecursionError):
        raise ExampleError(
            "invalid_field", "has 'tools' that are no list of objects, as JSON in a string", "/tools"
        ) from None


def _renamed(pointer: str) -> str:
    _, _, *within = pointer.split("/")
    names = {"role": "from"}  # all else is written in the value
    return "/".join(["/conversations", *within[:1], *(names.get(field, "value") for field in within[1:2])])


def _from_alpaca(example: _Alpaca) -> ChatExample:
    messages = [Message("system", example.system)] if example.system else []
    question = example.instruction if not example.input else f"{example.instruction}\n\n{example.input}"
    messages += [Message("user", question), Message("assistant", example.output)]
    names = ["/system", "/instruction", "/output"][-len(messages) :]

    def pointer(path: str) -> str:
        position = re.search(r"\d+", path)
        return names[int(position[0])] if position else ""

    return _checked(ChatExample(messages), pointer)


def _checked(chat: ChatExample, pointer: Callable[[str], str]) -> ChatExample:
    try:
        check_chat(chat)
    except ExampleError as error:
        raise ExampleError(error.code, error.message, pointer(error.pointer)) from None
    return chat
