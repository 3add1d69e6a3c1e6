"""Tool calls as graders and people read them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

Call = Mapping[str, Any]
"""A call as a chat completion has it: `{"function": {"name": …, "arguments": "{…}"}}`."""


def read_call(call: Call) -> dict[str, Any]:
    """Returns a call's name and its arguments as a value; arguments that are not JSON stay as they are."""
    function = cast("Call", call.get("function") or {})
    arguments: Any = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            arguments = msgspec.json.decode(arguments)
    return {"name": function.get("name"), "arguments": arguments}


def calls_json(calls: Sequence[Call]) -> str:
    """Returns the calls as JSON, `[{"arguments": {…}, "name": …}]`, to be compared as text or as JSON."""
    return msgspec.json.encode([read_call(call) for call in calls], order="sorted").decode()


def calls_in(text: str) -> list[dict[str, Any]]:
    """Returns the calls of a text that is a list of them, as `calls_json` or a chat completion writes them.

    They are as a chat completion has them, but for their ids. Other texts and entries hold no calls.
    """
    try:
        listed: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return []
    entries = cast("list[Any]", listed) if isinstance(listed, list) else []
    return [call for entry in entries if (call := _written_call(entry)) is not None]


def call_text(call: Call) -> str:
    """Returns a call in one line for a person to read, such as `set_timer(minutes=5, name="rice")`."""
    named = read_call(call)
    arguments = named["arguments"]
    if not isinstance(arguments, dict):
        return f"{named['name']}({arguments if arguments is not None else ''})"
    fields = cast("dict[str, Any]", arguments).items()
    return f"{named['name']}({', '.join(f'{key}={_json(value)}' for key, value in fields)})"


def turn_text(text: str | None, calls: Sequence[Call] | None) -> str:
    """Returns a turn for a person to read: its text, unless that is the calls, and each call in a line."""
    if not calls:
        return text or ""
    said = [text] if text and text != calls_json(calls) else []
    return "\n".join([*said, *map(call_text, calls)])


def _written_call(entry: Any) -> dict[str, Any] | None:
    if not isinstance(entry, dict):
        return None
    call = cast("Call", entry)
    function: Any = call["function"] if call.get("type") == "function" and "function" in call else call
    if not isinstance(function, dict) or not {"name", "arguments"} <= cast("Call", function).keys():
        return None
    named = cast("Call", function)
    arguments = named["arguments"]
    text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
    return {"type": "function", "function": {"name": named["name"], "arguments": text}}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
