"""openai-python: the responses API, stateless and with stored turns."""

from __future__ import annotations

import json
import os
from typing import Any, Literal

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

client = OpenAI()
MODEL, BASE = os.environ["MODEL"], os.environ["BASE_MODEL"]
SYSTEM = "You are the kitchen's assistant."
TOOLS: Any = [
    {
        "type": "function",
        "name": "set_timer",
        "description": "Set a timer for a dish.",
        "parameters": {
            "type": "object",
            "properties": {"dish": {"type": "string"}, "minutes": {"type": "integer"}},
            "required": ["dish", "minutes"],
        },
        "strict": False,
    },
    {
        "type": "function",
        "name": "heat_oven",
        "description": "Heat the oven.",
        "parameters": {
            "type": "object",
            "properties": {"celsius": {"type": "integer"}},
            "required": ["celsius"],
        },
        "strict": False,
    },
]


def test_a_text_is_answered() -> None:
    response = client.responses.create(
        model=BASE, input="What is the capital of France?", temperature=0, max_output_tokens=16, store=False
    )
    assert response.object == "response"
    assert "Paris" in response.output_text
    assert response.usage is not None
    assert response.usage.output_tokens > 0


def test_an_answer_is_streamed_as_events() -> None:
    with client.responses.stream(
        model=BASE, input="What is the capital of France?", temperature=0, max_output_tokens=16
    ) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_response()
    assert events[0] == "response.created"
    assert events[-1] in ("response.completed", "response.incomplete")
    assert "response.output_text.delta" in events
    assert "Paris" in final.output_text


def test_a_function_is_called_and_its_output_is_answered() -> None:
    first = client.responses.create(
        model=MODEL,
        instructions=SYSTEM,
        input="Set a timer for the pie: 40 minutes.",
        tools=TOOLS,
        temperature=0,
    )
    [call] = [item for item in first.output if item.type == "function_call"]
    assert call.name == "set_timer"
    assert json.loads(call.arguments) == {"dish": "pie", "minutes": 40}
    second = client.responses.create(
        model=MODEL,
        instructions=SYSTEM,
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": '{"done": true}'}],
        tools=TOOLS,
        temperature=0,
        max_output_tokens=32,
    )
    assert second.previous_response_id == first.id
    assert "timer" in second.output_text.lower()


def test_a_function_is_called_in_a_stream() -> None:
    with client.responses.stream(
        model=MODEL, instructions=SYSTEM, input="Heat the oven to 180 degrees.", tools=TOOLS, temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    [call] = [item for item in final.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("heat_oven", {"celsius": 180})


class Pie(BaseModel):
    """What the parse helper returns."""

    minutes: int
    size: Literal["small", "large"]


def test_a_pydantic_model_is_parsed() -> None:
    response = client.responses.parse(
        model=MODEL,
        input="A large pie takes 40 minutes.",
        text_format=Pie,
        temperature=0,
        max_output_tokens=64,
    )
    assert isinstance(response.output_parsed, Pie)


def test_a_stored_response_is_continued_read_and_deleted() -> None:
    first = client.responses.create(
        model=BASE,
        input="What is the capital of France?",
        temperature=0,
        max_output_tokens=16,
        store=True,
    )
    second = client.responses.create(
        model=BASE,
        previous_response_id=first.id,
        input="And of Spain?",
        temperature=0,
        max_output_tokens=16,
    )
    assert "Madrid" in second.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text
    assert client.responses.input_items.list(first.id).data[0].type == "message"
    client.responses.delete(first.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(first.id)


def test_a_hosted_tool_is_refused_by_name() -> None:
    with pytest.raises(BadRequestError) as raised:
        client.responses.create(model=BASE, input="Hi", tools=[{"type": "web_search"}])
    assert "web_search" in raised.value.message
    assert raised.value.param is not None
    assert raised.value.param.startswith("tools")
