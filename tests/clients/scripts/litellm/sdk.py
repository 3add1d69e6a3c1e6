"""LiteLLM's SDK: a model of Toque is `openai/<name>`."""

from __future__ import annotations

import json
import os
from typing import Any, Literal

import litellm
import pytest
from pydantic import BaseModel, Field

MODEL, BASE = f"openai/{os.environ['MODEL']}", f"openai/{os.environ['BASE_MODEL']}"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
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
REQUEST: Any = [
    {"role": "system", "content": "You are the kitchen's assistant."},
    {"role": "user", "content": "Set a timer for the pie: 40 minutes."},
]


class Pie(BaseModel):
    """What is known of a pie."""

    minutes: int = Field(ge=1, le=120)
    size: Literal["small", "large"]


def test_completion_answers() -> None:
    answer: Any = litellm.completion(model=BASE, messages=FRANCE, temperature=0, max_tokens=16)
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def test_completion_streams() -> None:
    chunks: Any = litellm.completion(model=BASE, messages=FRANCE, temperature=0, max_tokens=16, stream=True)
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_completion_calls_a_tool_whole_and_streamed() -> None:
    whole: Any = litellm.completion(model=MODEL, messages=REQUEST, tools=[TIMER], temperature=0)
    chunks: Any = litellm.completion(model=MODEL, messages=REQUEST, tools=[TIMER], temperature=0, stream=True)
    streamed: Any = litellm.stream_chunk_builder(list(chunks), messages=REQUEST)
    for answer in (whole, streamed):
        [call] = answer.choices[0].message.tool_calls
        assert call.function.name == "set_timer"
        assert json.loads(call.function.arguments) == {"dish": "pie", "minutes": 40}


def test_completion_takes_a_pydantic_model_as_its_format() -> None:
    answer: Any = litellm.completion(
        model=MODEL,
        messages=[{"role": "user", "content": "A large pie takes 40 minutes."}],
        response_format=Pie,
        temperature=0,
        max_tokens=64,
    )
    assert Pie.model_validate_json(answer.choices[0].message.content)


def test_text_completion_answers() -> None:
    answer: Any = litellm.text_completion(
        model=f"text-completion-openai/{os.environ['BASE_MODEL']}",
        prompt="The capital of France is",
        temperature=0,
        max_tokens=4,
    )
    assert "Paris" in answer.choices[0].text


def test_responses_answers() -> None:
    answer: Any = litellm.responses(
        model=BASE, input="What is the capital of France?", temperature=0, max_output_tokens=16
    )
    assert "Paris" in answer.output_text


def test_an_error_has_its_class() -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/none", messages=FRANCE)
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(model=BASE, messages=FRANCE, temperature=3)


def test_files_and_fine_tuning_jobs() -> None:
    line = {"messages": [{"role": "user", "content": "Soup?"}, {"role": "assistant", "content": "Leek."}]}
    data = (json.dumps(line) + "\n").encode() * 12
    file: Any = litellm.create_file(
        file=("soup.jsonl", data), purpose="fine-tune", custom_llm_provider="openai"
    )
    job: Any = litellm.create_fine_tuning_job(
        model=os.environ["BASE_MODEL"], training_file=file.id, custom_llm_provider="openai"
    )
    cancelled: Any = litellm.cancel_fine_tuning_job(fine_tuning_job_id=job.id, custom_llm_provider="openai")
    assert cancelled.status == "cancelled"
