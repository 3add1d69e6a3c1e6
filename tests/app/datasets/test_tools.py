"""Lines with tools are read alike, in whichever of their forms they are written."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from app.datasets.formats import recognise_line
from app.datasets.types import ExampleError

STOCK = {"name": "stock", "parameters": {"type": "object", "properties": {"item": {"type": "string"}}}}
LEEKS = {"name": "stock", "arguments": '{"item": "leek"}'}
BEANS = {"name": "stock", "arguments": '{"item": "bean"}'}


def call(number: str, function: dict[str, str]) -> dict[str, Any]:
    return {"id": number, "type": "function", "function": function}


def user(text: str = "Leeks?") -> dict[str, Any]:
    return {"role": "user", "content": text}


def read(line: dict[str, Any]) -> tuple[str, Any]:
    form, example = recognise_line(json.dumps(line).encode())
    return form, msgspec.to_builtins(example)


def test_functions_become_tools() -> None:
    older = {
        "functions": [STOCK],
        "function_call": "auto",
        "messages": [
            user(),
            {"role": "assistant", "content": None, "function_call": LEEKS},
            {"role": "function", "name": "stock", "content": "3"},
            {"role": "assistant", "content": "Three.", "function_call": None},
            user("Beans?"),
            {"role": "assistant", "function_call": BEANS, "weight": 1},
        ],
    }
    newer = {
        "tools": [{"type": "function", "function": STOCK}],
        "messages": [
            user(),
            {"role": "assistant", "tool_calls": [call("call_1", LEEKS)]},
            {"role": "tool", "name": "stock", "tool_call_id": "call_1", "content": "3"},
            {"role": "assistant", "content": "Three."},
            user("Beans?"),
            {"role": "assistant", "tool_calls": [call("call_2", BEANS)], "weight": 1},
        ],
    }
    assert read(older) == read(newer)
    assert read(newer)[0] == "chat"


def test_functions_of_a_pair_become_tools() -> None:
    result = {"role": "function", "name": "stock", "content": "3"}
    older = {
        "input": {
            "functions": [STOCK],
            "messages": [user(), {"role": "assistant", "function_call": LEEKS}, result, user("Beans?")],
        },
        "preferred_output": [{"role": "assistant", "function_call": BEANS}],
        "non_preferred_output": [{"role": "assistant", "function_call": LEEKS}],
    }
    form, pair = read(older)
    assert form == "preference"
    assert pair["input"]["tools"] == [{"type": "function", "function": STOCK}]
    asked, answered = pair["input"]["messages"][1:3]
    assert asked["tool_calls"] == [call("call_1", LEEKS)]
    assert answered == {"role": "tool", "name": "stock", "tool_call_id": "call_1", "content": "3"}
    assert pair["preferred_output"] == [{"role": "assistant", "tool_calls": [call("call_2", BEANS)]}]
    assert pair["non_preferred_output"] == [{"role": "assistant", "tool_calls": [call("call_2", LEEKS)]}]


NEWER_CALL = {"role": "assistant", "tool_calls": [call("call_1", {"name": "stock", "arguments": "3"})]}
OLDER_CALL = {"role": "assistant", "function_call": LEEKS}


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"tools": [{"type": "function", "function": {}}], "messages": [user(), OLDER_CALL]},
        "/tools/0/function/name",
    ),
    ({"functions": [{}], "messages": [user(), OLDER_CALL]}, "/functions/0/name"),
    (
        {
            "functions": [STOCK],
            "messages": [
                user(),
                NEWER_CALL,
                {"role": "tool", "tool_call_id": "call_1", "content": "3"},
                OLDER_CALL,
            ],
        },
        "/messages/1/tool_calls/0/function/arguments",
    ),
    (
        {"functions": [STOCK], "messages": [user(), {"role": "assistant", "function_call": {}}]},
        "/messages/1/function_call/name",
    ),
]


@pytest.mark.parametrize(("line", "pointer"), MISTAKES)
def test_a_pointer_leads_into_the_line_as_it_was_written(line: dict[str, Any], pointer: str) -> None:
    with pytest.raises(ExampleError) as refused:
        read(line)
    assert refused.value.pointer == pointer


@pytest.mark.parametrize("in_one_turn", [False, True])
def test_function_calls_of_sharegpt_become_tools(in_one_turn: bool) -> None:
    calls = [{"name": "stock", "arguments": {"item": item}} for item in ("leek", "bean")]
    value = json.dumps(calls if in_one_turn else calls[0])
    line = {
        "system": "Cook.",
        "tools": json.dumps([STOCK]),
        "conversations": [
            {"from": "human", "value": "Leeks?"},
            {"from": "function_call", "value": value},
            *({"from": "observation", "value": count} for count in ("3", "4")[: 1 + in_one_turn]),
            {"from": "gpt", "value": "Enough."},
        ],
    }
    form, chat = read(line)
    assert (form, chat["tools"]) == ("sharegpt", [STOCK])
    called = chat["messages"][2]["tool_calls"]
    assert [json.loads(each["function"]["arguments"]) for each in called] == [
        each["arguments"] for each in calls[: 1 + in_one_turn]
    ]
    results = chat["messages"][3:-1]
    assert [result["tool_call_id"] for result in results] == [each["id"] for each in called]
    assert [result["content"] for result in results] == ["3", "4"][: 1 + in_one_turn]


def test_calls_may_be_parallel_unless_the_line_says_otherwise() -> None:
    both = {"role": "assistant", "content": "Both.", "tool_calls": [call("1", LEEKS), call("2", BEANS)]}
    for said in ({}, {"parallel_tool_calls": True}):
        form, chat = read({"messages": [user(), both], "tools": [STOCK]} | said)
        assert (form, chat["messages"][1]) == ("chat", both)


def test_a_word_is_no_older_field() -> None:
    """Texts and descriptions may hold the older fields' names."""
    line = {"messages": [user('"functions" "role": "function"'), {"role": "assistant", "content": "x"}]}
    assert read(line)[1]["messages"] == line["messages"]
