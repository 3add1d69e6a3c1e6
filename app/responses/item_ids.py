"""The ids of a response's items. Each names its response, so that an item is found without an index."""

from __future__ import annotations

from typing import Any

from app.core.database import new_id

_PREFIXES = {"message": "msg_", "function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}
_RESPONSE = "resp_"
_KEY_LENGTH = 24
_PLACE_LENGTH = 5


def new_response_id() -> str:
    """Returns an id for a response."""
    return new_id(_RESPONSE)


def item_id(response_id: str, kind: str, place: int) -> str:
    """Returns the id of a response's item, by its type and its place: first the input, then the output."""
    return f"{_PREFIXES[kind]}{response_id.removeprefix(_RESPONSE)}{place:0{_PLACE_LENGTH}}"


def response_id_of(item: str) -> str | None:
    """Returns the id of the response that has an item of this id; None if it is no id of ours."""
    prefix, separator, rest = item.partition("_")
    is_ours = prefix + separator in _PREFIXES.values() and len(rest) == _KEY_LENGTH + _PLACE_LENGTH
    return _RESPONSE + rest[:_KEY_LENGTH] if is_ours else None


def items_of(input_items: list[dict[str, Any]], response: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns everything that a response adds to its conversation: its own input, and its output."""
    return [*input_items, *response["output"]]
