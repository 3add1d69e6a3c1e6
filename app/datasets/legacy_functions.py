"""Reads OpenAI's older `functions` and `function_call` as the tools and tool calls that took their place.

`functions` are `tools`, an assistant's `function_call` is its one tool call, and a turn of the role
`function` is the result of the call before it. OpenAI has deprecated them:
https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from app.datasets.types import ExampleError

Fields = dict[str, Any]
_OLDER = re.compile(rb'"functions"|"function_call"|"role"\s*:\s*"function"')
_RENAMED = (
    (r"/tool_calls/0/function(/\w+)?$", r"/function_call\1"),
    (r"/tools/(\d+)/function", r"/functions/\1"),
    (r"/tools", "/functions"),
    (r"/tool_call_id$", "/name"),
)


def modernise(line: bytes) -> bytes | None:
    """Returns the line, which is strict JSON, with tools and tool calls, or None if it has no older fields.

    Raises:
        ExampleError: it has older fields beside newer ones, or one that is not what it must be.
    """
    if not _OLDER.search(line):
        return None
    example: Any = msgspec.json.decode(line)
    has_input = isinstance(example.get("input"), dict)
    asked, place = (example["input"], "/input") if has_input else (example, "")
    changed = _modernise_functions(asked, place)
    calls = _Calls()
    changed |= calls.modernise(asked.get("messages"), f"{place}/messages")
    for output in ("preferred_output", "non_preferred_output"):
        changed |= calls.after_these().modernise(example.get(output), f"/{output}")
    return msgspec.json.encode(example) if changed else None


def older_pointer(pointer: str, line: bytes) -> str:
    """Returns the place in the line as it was written for a place in what `modernise` made of it."""
    older = pointer
    for newer, name in _RENAMED:
        older = re.sub(newer, name, older)
    example: Any = msgspec.json.decode(line)
    is_older = _has(example, older) or (
        # a field that the line lacks, of an object that it has
        _has(example, _parent(older)) and not _has(example, _parent(pointer))
    )
    return older if is_older else pointer


def _has(place: Any, pointer: str) -> bool:
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, dict) and name in cast("Fields", place):
            place = cast("Fields", place)[name]
        elif isinstance(place, list) and name.isdecimal() and int(name) < len(cast("list[Any]", place)):
            place = cast("list[Any]", place)[int(name)]
        else:
            return False
    return True


def _parent(pointer: str) -> str:
    return pointer.rpartition("/")[0]


def _modernise_functions(asked: Fields, place: str) -> bool:
    functions = asked.pop("functions", None)
    if functions is None:
        return False
    if asked.get("tools") is not None:
        raise ExampleError(
            "invalid_field",
            "has both 'tools' and 'functions', their older name; keep 'tools'",
            f"{place}/functions",
        )
    if not isinstance(functions, list):
        raise ExampleError("invalid_field", "has 'functions' that are not a list", f"{place}/functions")
    asked["tools"] = [{"type": "function", "function": function} for function in cast("list[Any]", functions)]
    return True


class _Calls:
    """The calls of a conversation, numbered, and the one whose result comes next."""

    def __init__(self, count: int = 0, last: Fields | None = None) -> None:
        self._count = count
        self._last = last

    def after_these(self) -> _Calls:
        """Returns calls that go on where these end."""
        return _Calls(self._count, self._last)

    def modernise(self, messages: Any, place: str) -> bool:
        """Replaces the older fields of the messages; returns whether there were any."""
        if not isinstance(messages, list):
            return False
        turns = cast("Sequence[Any]", messages)
        changes = [
            self._modernise_turn(cast("Fields", turn), f"{place}/{number}")
            for number, turn in enumerate(turns)
            if isinstance(turn, dict)
        ]
        return any(changes)

    def _modernise_turn(self, turn: Fields, place: str) -> bool:
        call = turn.pop("function_call", None)
        if call is not None:
            if turn.get("tool_calls"):
                raise ExampleError(
                    "invalid_tool_call",
                    "has both 'tool_calls' and 'function_call', their older name; keep 'tool_calls'",
                    f"{place}/function_call",
                )
            self._count += 1
            self._last = {"id": f"call_{self._count}", "type": "function", "function": call}
            turn["tool_calls"] = [self._last]
            return True
        if turn.get("role") != "function":
            return False
        if self._last is None or _name(self._last["function"]) != turn.get("name"):
            raise ExampleError(
                "unknown_tool_call",
                "has a function turn whose 'name' is not that of the call before it",
                f"{place}/name",
            )
        turn |= {"role": "tool", "tool_call_id": self._last["id"]}
        return True


def _name(function: Any) -> Any:
    return cast("Fields", function).get("name") if isinstance(function, dict) else None
