"""Converts lines in the ShareGPT and Alpaca formats to chat examples.

ShareGPT: `{"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}], "system": …}`.
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
from app.datasets.types import ChatExample, ExampleError, Format, Message, Role

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
}


class _Turn(msgspec.Struct):
    speaker: str = msgspec.field(name="from")
    value: str


class _ShareGpt(msgspec.Struct):
    conversations: list[_Turn]
    system: str | None = None


class _Alpaca(msgspec.Struct):
    instruction: str
    output: str
    input: str | None = None
    system: str | None = None


_sharegpt_decoder = msgspec.json.Decoder(_ShareGpt)
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
    for index, turn in enumerate(example.conversations):
        role = _ROLES.get(turn.speaker)
        if role is None:
            raise ExampleError(
                "unknown_role",
                f"has a turn from {turn.speaker[:40]!r}; known are {', '.join(_ROLES)}",
                f"/conversations/{index}/from",
            )
        messages.append(Message(role, turn.value))

    def pointer(path: str) -> str:
        shifted = re.sub(r"\d+", lambda number: str(int(number[0]) - before), path, count=1)
        return "/system" if "-" in shifted else _renamed(shifted)

    return _checked(ChatExample(messages), pointer)


def _renamed(pointer: str) -> str:
    parts = pointer.replace("/messages", "/conversations", 1).split("/")
    names = {"content": "value", "role": "from"}
    return "/".join([*parts[:-1], names.get(parts[-1], parts[-1])])


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
