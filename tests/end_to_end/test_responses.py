"""`/v1/responses` with the real engine, through the official client."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from openai.types.responses import ResponseCompletedEvent, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.support.deployment import Trained
from tests.support.service import BASE_MODEL

CAPITAL: dict[str, Any] = {
    "model": BASE_MODEL,
    "input": "What is the capital of France?",
    "temperature": 0,
    "max_output_tokens": 20,
}
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


class City(BaseModel):
    name: Literal["Paris", "Rome"]
    inhabitants: int


def test_a_text_is_answered_and_continued(client: OpenAI) -> None:
    first = client.responses.create(**CAPITAL)
    assert "Paris" in first.output_text
    assert (first.status, first.model) == ("completed", BASE_MODEL)
    assert first.usage is not None
    assert first.usage.input_tokens > 10
    second = client.responses.create(**CAPITAL | {"input": "And of Italy?"}, previous_response_id=first.id)
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens, "it has read the first turn, too"
    assert client.responses.retrieve(second.id).output_text == second.output_text
    items = list(client.responses.input_items.list(second.id, order="asc"))
    assert [item.id for item in items][1] == first.output[0].id
    client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError, match=first.id):
        client.responses.create(**CAPITAL, previous_response_id=second.id)


def test_a_stream_says_what_the_whole_answer_says(client: OpenAI) -> None:
    whole = client.responses.create(
        **CAPITAL, store=False, include=["message.output_text.logprobs"], top_logprobs=2
    )
    events = list(
        client.responses.create(
            **CAPITAL, store=False, stream=True, include=["message.output_text.logprobs"], top_logprobs=2
        )
    )
    for number, event in enumerate(events):
        assert event.sequence_number == number
        EVENT.validate_python(event.to_dict(), strict=True)
    last = events[-1]
    assert isinstance(last, ResponseCompletedEvent)
    assert last.response.output_text == whole.output_text
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    for response in (whole, last.response):
        [message] = response.output
        assert message.type == "message"
        [text] = message.content
        assert text.type == "output_text"
        assert text.logprobs
        assert "".join(each.token for each in text.logprobs).startswith(whole.output_text)
        assert all(len(each.top_logprobs) == 2 for each in text.logprobs)


def test_an_answer_that_is_cut_off_is_incomplete(client: OpenAI) -> None:
    short = CAPITAL | {"max_output_tokens": 2}
    whole = client.responses.create(**short, store=False)
    *_, last = client.responses.create(**short, store=False, stream=True)
    assert last.type == "response.incomplete"
    for response in (whole, last.response):
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"


def test_a_schema_is_kept_to(client: OpenAI) -> None:
    parsed = client.responses.parse(**CAPITAL | {"max_output_tokens": 60}, text_format=City)
    assert isinstance(parsed.output_parsed, City)


@pytest.mark.parametrize("stream", [False, True])
def test_a_function_is_called_and_its_output_read(client: OpenAI, stream: bool) -> None:
    tool: Any = openai.pydantic_function_tool(City, name="look_up_city")
    tools: Any = [{"type": "function", **tool["function"]}]
    ask = CAPITAL | {"tools": tools, "max_output_tokens": 120, "parallel_tool_calls": False}
    if stream:
        *_, last = client.responses.create(**ask, tool_choice="required", stream=True)
        assert last.type == "response.completed"
        first = last.response
    else:
        first = client.responses.create(**ask, tool_choice={"type": "function", "name": "look_up_city"})
    [call] = first.output
    assert call.type == "function_call"
    assert call.name == "look_up_city"
    City.model_validate_json(call.arguments)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "It is Paris."}
    second = client.responses.create(
        **ask | {"input": [result]}, previous_response_id=first.id, tool_choice="none"
    )
    assert second.output_text


def test_instructions_and_items_reach_the_fine_tuned_model(
    client: OpenAI, trained: Trained, questions: list[Any]
) -> None:
    def ask(question: Any) -> str:
        *instructions, asked = question.turns
        said = instructions[0]["content"] if instructions else None
        response = client.responses.create(
            model=trained.job.fine_tuned_model or "",
            instructions=said,
            input=[{"role": asked["role"], "content": [{"type": "input_text", "text": asked["content"]}]}],
            temperature=0,
            max_output_tokens=48,
            store=False,
        )
        assert response.model == trained.job.fine_tuned_model
        return response.output_text.strip()

    with ThreadPoolExecutor(len(questions)) as pool:
        answers = list(pool.map(ask, questions))
    right = [answer == question.reference for answer, question in zip(answers, questions, strict=True)]
    assert sum(right) / len(right) >= 0.75, right
