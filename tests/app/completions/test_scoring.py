"""Prompts as token ids, and the log-probabilities of prompts: what reaches an engine, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from app.completions.schemas import ChatCompletionRequest
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.service import BASE_MODEL

pytestmark = pytest.mark.one_database

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT: dict[str, Any] = {"model": BASE_MODEL, "prompt": "Soup"}
CONTEXT = 2048
"""Of the base model."""


@pytest.mark.parametrize("prompt", ["Soup", ["Soup", "Stew"], [1, 2, 0], [[5], [6, 7]]])
def test_every_form_of_prompt_reaches_the_engine(client: OpenAI, engine: EngineStandIn, prompt: Any) -> None:
    client.completions.create(model=BASE_MODEL, prompt=prompt, echo=True, logprobs=5, max_tokens=0)
    body = engine.bodies[-1]
    assert (body["prompt"], body["echo"], body["logprobs"], body["max_tokens"]) == (prompt, True, 5, 0)


def test_an_echo_counts_no_token_of_an_answer(client: OpenAI, engine: EngineStandIn) -> None:
    """The engine adds a token that nobody asked for: the stand-in says three, and `stop`."""
    request: dict[str, Any] = {"model": BASE_MODEL, "prompt": "Soup", "echo": True, "max_tokens": 0}
    answer = client.completions.create(**request)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        5,
        0,
        5,
    )
    *_, last = client.completions.create(**request, stream=True, stream_options={"include_usage": True})
    assert last.usage == answer.usage


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, PROMPT), (CHAT, ASK)])
def test_prompt_logprobs_reach_the_engine(
    http: httpx2.Client, engine: EngineStandIn, path: str, body: dict[str, Any]
) -> None:
    assert http.post(path, json=body | {"prompt_logprobs": 20}).status_code == 200
    assert engine.bodies[-1]["prompt_logprobs"] == 20


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [""]}, "prompt[0]"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [[1], "a"]}, "prompt[1]"),
        ({"prompt": [[1], [[2]]]}, "prompt[1][0]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [{}]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [2**31]}, "prompt[0]"),
        ({"prompt": [10**18]}, "prompt[0]"),
        ({"prompt": [[1, 10**40]]}, "prompt[0][1]"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": [[1]] * 65}, "prompt"),
        ({"prompt": [1] * (2**18 + 1)}, "prompt"),
        ({"prompt": [1] * CONTEXT}, "prompt"),
        ({"prompt": [[1]] * 33, "n": 4}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "echo": True, "logprobs": 2}, "prompt_logprobs"),
        ({"prompt": [[1] * 2000] * 64, "prompt_logprobs": 2}, "prompt_logprobs"),
        ({"prompt": [[1] * 2000] * 64, "echo": True, "logprobs": 2}, "logprobs"),
        ({"prompt": ["é" * 2000] * 64, "echo": True, "logprobs": 2}, "logprobs"),
        ({"prompt": ["a"] * 64, "max_tokens": 1000, "logprobs": 5}, "logprobs"),
        ({"prompt": [[1] * 1000] * 20, "n": 6, "echo": True, "logprobs": 2}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 21}, "best_of"),
        ({"suffix": "."}, "suffix"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"soup": 1}}, "logit_bias"),
        ({"logit_bias": {"1e3": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 30: 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
    ],
)
def test_what_is_refused_never_reaches_an_engine(
    http: httpx2.Client, engine: EngineStandIn, extra: dict[str, Any], param: str
) -> None:
    response = http.post(COMPLETIONS, json=PROMPT | extra)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"].startswith(param), error
    assert len(error["message"]) < 500
    assert engine.bodies == []


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"echo": True}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 20, "n": 16, "max_tokens": 2**31 - 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 20, "n": 16, "max_completion_tokens": 2000}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 20, "n": 7}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 20, "n": 7, "prompt_logprobs": 0}, "prompt_logprobs"),
    ],
)
def test_what_chats_may_not_ask(
    http: httpx2.Client, engine: EngineStandIn, extra: dict[str, Any], param: str
) -> None:
    response = http.post(CHAT, json=ASK | extra)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert engine.bodies == []


def test_what_fits_is_accepted(http: httpx2.Client, engine: EngineStandIn) -> None:
    most = [[1] * (CONTEXT - 1)] * 64
    for extra in (
        {"prompt": most, "echo": True, "logprobs": 1, "max_tokens": 1},
        {"prompt": [[1]] * 64, "n": 2},
        {"best_of": 1, "suffix": None},
        {"best_of": 2, "n": 2},
        {"logit_bias": {"5": -100}},
    ):
        response = http.post(COMPLETIONS, json=PROMPT | extra)
        assert response.status_code == 200, response.text
        assert "best_of" not in engine.bodies[-1]


def test_chats_whose_answers_fit_are_accepted(http: httpx2.Client, engine: EngineStandIn) -> None:
    for extra in (
        {"top_logprobs": 20},
        {"top_logprobs": 20, "max_tokens": 2**31 - 1},
        {"top_logprobs": 20, "n": 6},
        {"n": 16},
        {"top_logprobs": 20, "n": 16, "max_completion_tokens": 780},
    ):
        response = http.post(CHAT, json=ASK | {"logprobs": True} | extra)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("extra", "counted"),
    [
        ({"logprobs": True, "top_logprobs": 20}, 0),
        ({"logprobs": True, "top_logprobs": 20, "max_tokens": 100_000}, 32_768 * 21),
        ({"logprobs": False, "n": 16}, 0),
        ({"prompt_logprobs": 0, "messages": [{"role": "user", "content": "🍲" * 10_000}]}, 32_768),
    ],
)
def test_what_a_chat_counts_at_a_long_context(extra: dict[str, Any], counted: int) -> None:
    request = ChatCompletionRequest.model_validate({"model": BASE_MODEL} | ASK | extra)
    assert request.count_logprobs(32_768) == counted


def test_an_id_that_the_model_does_not_have_is_an_error_of_the_prompt(
    client: OpenAI, engine: EngineStandIn
) -> None:
    engine.behaviour = "refuse"
    engine.refusal = "Token id 50000 is out of vocabulary"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=BASE_MODEL, prompt=[50_000])
    assert (caught.value.code, caught.value.param) == ("invalid_value", "prompt")
