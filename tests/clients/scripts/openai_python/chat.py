"""openai-python: chat completions, whole and streamed, with tools and with schemas."""

from __future__ import annotations

import json
import os
from typing import Any, Literal

import openai
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel, Field

client = OpenAI()
MODEL, BASE = os.environ["MODEL"], os.environ["BASE_MODEL"]
SYSTEM = "You are the kitchen's assistant."
TIMER: Any = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "description": "Set a timer for a dish.",
        "parameters": {
            "type": "object",
            "properties": {"dish": {"type": "string"}, "minutes": {"type": "integer"}},
            "required": ["dish", "minutes"],
        },
    },
}
OVEN: Any = {
    "type": "function",
    "function": {
        "name": "heat_oven",
        "description": "Heat the oven.",
        "parameters": {
            "type": "object",
            "properties": {"celsius": {"type": "integer"}},
            "required": ["celsius"],
        },
    },
}
TOOLS = [TIMER, OVEN]


FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]


def conversation(question: str) -> list[Any]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def test_an_answer_is_whole() -> None:
    answer = client.chat.completions.create(model=BASE, messages=FRANCE, temperature=0, max_tokens=12)
    assert answer.object == "chat.completion"
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


def test_an_answer_is_streamed_with_its_usage() -> None:
    chunks = list(
        client.chat.completions.create(
            model=BASE,
            messages=FRANCE,
            temperature=0,
            max_completion_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_stream_helper_accumulates_an_answer() -> None:
    with client.chat.completions.stream(model=BASE, messages=FRANCE, temperature=0) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert "Paris" in (final.choices[0].message.content or "")


def test_a_tool_is_called_by_its_name_with_its_arguments() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=conversation("Set a timer for the pie: 40 minutes."), tools=TOOLS, temperature=0
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "set_timer"
    assert json.loads(call.function.arguments) == {"dish": "pie", "minutes": 40}


def test_a_tool_is_called_in_a_stream() -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=conversation("Heat the oven to 180 degrees."), tools=TOOLS, temperature=0
    ) as events:
        [call] = events.get_final_completion().choices[0].message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("heat_oven", {"celsius": 180})


def test_a_tool_result_is_answered_in_words() -> None:
    messages = conversation("Set a timer for the pie: 40 minutes.")
    first = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, temperature=0)
    [call] = first.choices[0].message.tool_calls or []
    messages += [
        first.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": '{"done": true}'},
    ]
    second = client.chat.completions.create(
        model=MODEL, messages=messages, tools=TOOLS, temperature=0, max_tokens=32
    )
    assert second.choices[0].finish_reason == "stop"
    assert "timer" in (second.choices[0].message.content or "").lower()


def test_no_tool_is_called_if_the_choice_is_none() -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=conversation("Set a timer for the pie: 40 minutes."),
        tools=TOOLS,
        tool_choice="none",
        temperature=0,
        max_tokens=32,
    )
    assert answer.choices[0].message.tool_calls is None


def test_a_tool_is_called_if_the_choice_is_required() -> None:
    answer = client.chat.completions.create(
        model=BASE,
        messages=conversation("Hello!"),
        tools=[OVEN],
        tool_choice="required",
        temperature=0,
        max_tokens=64,
    )
    calls = answer.choices[0].message.tool_calls or []
    assert calls
    assert {call.function.name for call in calls} == {"heat_oven"}


def test_the_named_tool_is_called() -> None:
    answer = client.chat.completions.create(
        model=BASE,
        messages=conversation("The pie is ready in 40 minutes."),
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "heat_oven"}},
        temperature=0,
        max_tokens=64,
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert call.function.name == "heat_oven"
    assert isinstance(json.loads(call.function.arguments)["celsius"], int)


class Timer(BaseModel):
    """A timer, as the parse helper wants it."""

    minutes: int = Field(ge=1, le=120)
    size: Literal["small", "large"]


def test_a_pydantic_model_is_parsed_from_a_json_schema() -> None:
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=conversation("A large pie takes 40 minutes."),
        response_format=Timer,
        temperature=0,
        max_tokens=64,
    )
    assert isinstance(answer.choices[0].message.parsed, Timer)


def test_arguments_of_a_strict_tool_are_parsed() -> None:
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=conversation("Set a timer for the pie: 40 minutes."),
        tools=[openai.pydantic_function_tool(Timer, name="choose_timer")],
        tool_choice={"type": "function", "function": {"name": "choose_timer"}},
        temperature=0,
        max_tokens=64,
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Timer)


def test_a_json_object_is_json() -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=conversation("Say hello as JSON with the key greeting."),
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=100,
    )
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")


def test_several_choices_with_log_probabilities() -> None:
    answer = client.chat.completions.create(
        model=BASE, messages=conversation("Say hello."), n=2, temperature=0, logprobs=True, top_logprobs=2,
        max_tokens=4,
    )  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.refusal is None
    assert len((logprobs.content or [])[0].top_logprobs) == 2


def test_headers_are_read_from_the_raw_response() -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=BASE, messages=conversation("Hi"), max_tokens=2
    )
    assert raw.headers["x-request-id"]
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.parse().object == "chat.completion"


def test_a_bad_parameter_is_named() -> None:
    with pytest.raises(BadRequestError) as raised:
        client.chat.completions.create(model=BASE, messages=conversation("Hi"), temperature=3)
    assert raised.value.param == "temperature"
    with pytest.raises(BadRequestError) as raised:
        client.chat.completions.create(
            model=BASE, messages=conversation("Hi"), stop=["a", "b", "c", "d", "e"]
        )
    assert raised.value.param == "stop"


def test_a_model_that_is_not_there_raises_not_found() -> None:
    with pytest.raises(NotFoundError) as raised:
        client.chat.completions.create(model="gpt-none", messages=conversation("Hi"))
    assert raised.value.code == "model_not_found"
