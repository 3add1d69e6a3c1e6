"""Tools at the real engine: every choice, streamed and not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI

from tests.support.service import BASE_MODEL

TIMER = {
    "type": "object",
    "properties": {"minutes": {"type": "integer", "minimum": 1, "maximum": 90}},
    "required": ["minutes"],
    "additionalProperties": False,
}
STOCK = {
    "type": "object",
    "properties": {"item": {"enum": ["leek", "carrot"]}},
    "required": ["item"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "set_timer", "parameters": TIMER}},
    {"type": "function", "function": {"name": "stock", "parameters": STOCK}},
]
NAMED: Any = {"type": "function", "function": {"name": "stock"}}
ASK: dict[str, Any] = {
    "model": BASE_MODEL,
    "messages": [{"role": "user", "content": "Set a timer for ten minutes, and is there leek?"}],
    "temperature": 0,
    "max_tokens": 80,
    "tools": TOOLS,
}


def arguments_of(call: Any) -> dict[str, Any]:
    """The arguments, which fit the function's schema."""
    arguments = json.loads(call.function.arguments)
    if call.function.name == "stock":
        assert arguments in ({"item": "leek"}, {"item": "carrot"})
    else:
        assert set(arguments) == {"minutes"}
        assert 1 <= arguments["minutes"] <= 90
    return arguments


def streamed(client: OpenAI, **parameters: Any) -> tuple[list[Any], str | None]:
    """The calls of a stream, put together, and the reason why it ended."""
    with client.chat.completions.stream(**ASK | parameters) as stream:
        for event in stream:
            if event.type == "chunk" and event.chunk.choices:
                for call in event.chunk.choices[0].delta.tool_calls or []:
                    is_first = call.id is not None
                    assert is_first == (call.type == "function") == bool(call.function and call.function.name)
        choice = stream.get_final_completion().choices[0]
    return list(choice.message.tool_calls or []), choice.finish_reason


@pytest.mark.parametrize(("choice", "reason"), [("required", "tool_calls"), (NAMED, "stop")])
def test_a_demanded_call_fits_the_schema(client: OpenAI, choice: Any, reason: str) -> None:
    whole = client.chat.completions.create(**ASK, tool_choice=choice, parallel_tool_calls=False).choices[0]
    calls, ended = streamed(client, tool_choice=choice, parallel_tool_calls=False)
    assert (whole.finish_reason, ended) == (reason, reason)
    assert not whole.message.content
    for made in (whole.message.tool_calls or [], calls):
        assert len(made) == 1
        assert made[0].type == "function"
        assert made[0].id
        arguments_of(made[0])
        assert choice != NAMED or made[0].function.name == "stock"


def test_strict_functions_are_held_to_their_schema_in_parallel(client: OpenAI) -> None:
    calls, _ = streamed(client, tool_choice="required", max_tokens=150)
    assert calls
    assert len({call.id for call in calls}) == len(calls)


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_model_that_learnt_no_calls_answers_with_text(client: OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(**ASK | {"max_tokens": 8}, tool_choice=choice).choices[0]
    assert answer.message.content
    assert answer.message.tool_calls is None
    assert answer.finish_reason == "length"


def test_results_of_calls_are_read(client: OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "stock", "arguments": '{"item": "leek"}'}}
    turns: Any = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "12 kg"},
    ]
    read = client.chat.completions.create(**ASK | {"messages": turns, "max_tokens": 4})
    alone = client.chat.completions.create(**ASK | {"max_tokens": 4})
    assert read.usage and alone.usage and read.usage.prompt_tokens > alone.usage.prompt_tokens + 10


def test_several_greedy_answers_are_equal(client: OpenAI) -> None:
    parameters = {name: value for name, value in ASK.items() if name != "tools"} | {"max_tokens": 12, "n": 3}
    answers = client.chat.completions.create(**parameters, logprobs=True).choices
    assert len({answer.message.content for answer in answers}) == 1
    assert [answer.index for answer in answers] == [0, 1, 2]
