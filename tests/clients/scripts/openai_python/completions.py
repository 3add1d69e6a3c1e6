"""openai-python: completions of texts and of token ids, with log-probabilities."""

from __future__ import annotations

import os

from openai import OpenAI

client = OpenAI()
BASE = os.environ["BASE_MODEL"]


def test_a_text_is_completed() -> None:
    answer = client.completions.create(
        model=BASE, prompt="The capital of France is", temperature=0, max_tokens=4
    )
    assert answer.object == "text_completion"
    assert "Paris" in answer.choices[0].text


def test_a_text_is_completed_in_a_stream() -> None:
    chunks = client.completions.create(
        model=BASE, prompt="The capital of France is", temperature=0, max_tokens=4, stream=True
    )
    assert "Paris" in "".join(chunk.choices[0].text for chunk in chunks)


def test_several_prompts_are_completed_in_order() -> None:
    answer = client.completions.create(
        model=BASE,
        prompt=["The capital of France is", "The capital of Italy is"],
        temperature=0,
        max_tokens=4,
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert "Paris" in answer.choices[0].text
    assert "Rome" in answer.choices[1].text


def test_token_ids_are_completed() -> None:
    one = client.completions.create(model=BASE, prompt=[504, 3575, 282, 4649, 314], max_tokens=2)
    assert one.usage is not None
    assert one.usage.prompt_tokens == 5
    two = client.completions.create(model=BASE, prompt=[[504, 3575], [504, 3575, 282]], max_tokens=1)
    assert len(two.choices) == 2


def test_a_prompt_is_scored_with_echo() -> None:
    answer = client.completions.create(
        model=BASE, prompt="The capital of France is Paris", max_tokens=0, echo=True, logprobs=1
    )
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text == "The capital of France is Paris"
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert all(value is not None and value <= 0 for value in logprobs.token_logprobs[1:])
