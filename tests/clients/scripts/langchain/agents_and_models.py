"""LangChain: `ChatOpenAI`, tools, an agent and structured output."""

from __future__ import annotations

import os
from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

MODEL, BASE = os.environ["MODEL"], os.environ["BASE_MODEL"]
SYSTEM = "You are the kitchen's assistant."
base = ChatOpenAI(model=BASE, temperature=0, max_tokens=16)
model = ChatOpenAI(model=MODEL, temperature=0, max_tokens=64)


@tool
def set_timer(dish: str, minutes: int) -> str:
    """Set a timer for a dish."""
    return f'{{"done": true, "dish": "{dish}", "minutes": {minutes}}}'


@tool
def heat_oven(celsius: int) -> str:
    """Heat the oven."""
    return '{"done": true}'


class Pie(BaseModel):
    """What is known of a pie."""

    minutes: int = Field(ge=1, le=120)
    size: Literal["small", "large"]


def test_invoke_answers_with_its_usage() -> None:
    answer = base.invoke("What is the capital of France?")
    assert "Paris" in answer.text
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


def test_stream_answers_in_chunks() -> None:
    chunks = list(base.stream("What is the capital of France?"))
    assert len(chunks) > 2
    assert "Paris" in "".join(chunk.text for chunk in chunks)


def test_batch_answers_in_order() -> None:
    answers = base.batch([f"What is the capital of {country}?" for country in ("France", "Italy")])
    assert "Paris" in answers[0].text
    assert "Rome" in answers[1].text


def test_bind_tools_calls_the_tool() -> None:
    answer = model.bind_tools([set_timer, heat_oven]).invoke(
        [("system", SYSTEM), ("user", "Set a timer for the pie: 40 minutes.")]
    )
    assert isinstance(answer, AIMessage)
    [call] = answer.tool_calls
    assert (call["name"], call["args"]) == ("set_timer", {"dish": "pie", "minutes": 40})


def test_bind_tools_streams_the_call() -> None:
    whole: Any = None
    for chunk in model.bind_tools([set_timer, heat_oven]).stream(
        [("system", SYSTEM), ("user", "Heat the oven to 180 degrees.")]
    ):
        whole = chunk if whole is None else whole + chunk
    assert isinstance(whole, AIMessageChunk)
    [call] = whole.tool_calls
    assert (call["name"], call["args"]) == ("heat_oven", {"celsius": 180})


def test_an_agent_calls_the_tool_and_answers_in_words() -> None:
    agent = create_agent(model, [set_timer, heat_oven], system_prompt=SYSTEM)
    messages = agent.invoke(
        {"messages": [("user", "Set a timer for the pie: 40 minutes.")]}, {"recursion_limit": 6}
    )["messages"]
    [result] = [message for message in messages if isinstance(message, ToolMessage)]
    assert result.name == "set_timer"
    assert '"minutes": 40' in result.text
    assert "timer" in messages[-1].text.lower()


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(method: Literal["json_schema", "function_calling", "json_mode"]) -> None:
    asked = 'A large pie takes 40 minutes. Answer with JSON such as {"minutes": 10, "size": "small"}.'
    found = model.with_structured_output(Pie, method=method).invoke(asked)
    assert isinstance(found, Pie)


def test_the_responses_api_answers() -> None:
    answer = ChatOpenAI(model=BASE, temperature=0, use_responses_api=True).invoke(
        "What is the capital of France?", max_output_tokens=16
    )
    assert "Paris" in answer.text


def test_the_completions_class_answers() -> None:
    assert "Paris" in OpenAI(model=BASE, temperature=0, max_tokens=4).invoke("The capital of France is")


@pytest.mark.xfail(
    raises=Exception,
    reason="LangChain counts tokens with tiktoken, which downloads a vocabulary of OpenAI's models: without "
    "the internet it fails, and elsewhere the counts are not this model's",
)
def test_get_num_tokens_counts_for_the_model() -> None:
    assert base.get_num_tokens("Leek soup") == 4
