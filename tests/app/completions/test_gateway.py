"""The gateway: what passes, what is refused, and what an engine's faults look like from outside."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from app.auth import service as auth_service
from app.core.database import Database, database_now
from app.core.settings import Settings
from app.models.adapters.models import Adapter
from tests.support.cache_clock import CHANGES, MOVES, CacheClock
from tests.support.engine_stand_in import ASK, EngineStandIn, register_engine
from tests.support.service import API_KEY, BASE_MODEL, Service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database


def test_an_answer_passes_through(client: OpenAI, engine: EngineStandIn) -> None:
    answer = client.chat.completions.create(**ASK)
    assert answer.choices[0].message.content == "Leek."
    assert answer.model == BASE_MODEL
    streamed = [
        chunk.choices[0].delta.content for chunk in client.chat.completions.create(**ASK, stream=True)
    ]
    assert streamed == ["0 ", "1 ", "2 "]
    legacy = client.completions.create(model=BASE_MODEL, prompt="Soup")
    assert legacy.choices[0].text == "Leek."


def test_what_an_engine_may_see_passes_and_nothing_else(client: OpenAI, engine: EngineStandIn) -> None:
    function = {"name": "stock", "description": "d", "parameters": {"type": "object"}}
    passed: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 2,
        "stop": ["\n"],
        "seed": 3,
        "max_tokens": 5,
        "max_completion_tokens": 5,
        "logprobs": True,
        "top_logprobs": 2,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "logit_bias": {"5": -100},
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "stock"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": {"type": "object"}},
        },
    }
    client.chat.completions.create(
        **ASK, **passed, user="u", store=True, metadata={"a": "b"}, extra_body={"top_k": 7, "min_p": 0.1}
    )
    salt = engine.bodies[-1].pop("cache_salt")
    assert engine.bodies[-1] == ASK | passed | {"top_k": 7, "min_p": 0.1}
    assert salt.startswith("proj_")

    call = {"id": "c1", "type": "function", "function": {"name": "stock", "arguments": "{}"}}
    turns = [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call],
            "reasoning": "Look.",
            "refusal": None,
            "annotations": [],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "user", "content": [{"type": "text", "text": "And?"}]},
    ]
    client.chat.completions.create(model="gpt-4o-mini", messages=turns)  # pyright: ignore[reportArgumentType]
    assert engine.bodies[-1]["model"] == BASE_MODEL
    assert engine.bodies[-1]["messages"] == [
        {"role": "assistant", "tool_calls": [call], "reasoning": "Look."},
        *turns[1:],
    ]


@pytest.fixture
def thinking(settings: Settings) -> None:
    """The base model with a template that has a switch for thinking."""
    settings.base_models[0].allowed_template_kwargs = ["enable_thinking"]


def test_thinking_is_switched_where_the_base_has_a_switch(
    thinking: None, client: OpenAI, engine: EngineStandIn
) -> None:
    client.chat.completions.create(
        **ASK, reasoning_effort="low", extra_body={"chat_template_kwargs": {"enable_thinking": False}}
    )
    assert engine.bodies[-1]["reasoning_effort"] == "low"
    assert engine.bodies[-1]["chat_template_kwargs"] == {"enable_thinking": False}
    for name, value in (("enable_thinking", 2**70), ("enable_thinking", -1), ("tools", [])):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**ASK, extra_body={"chat_template_kwargs": {name: value}})
        assert refused.value.param == f"chat_template_kwargs.{name}"
    assert len(engine.bodies) == 1


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"chat_template": "{{ 7 * 7 }}"}, "chat_template"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"reasoning_effort": "most"}, "reasoning_effort"),
        ({"verbosity": "low"}, "verbosity"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"modalities": ["text", "audio"]}, "modalities[1]"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"stop": ["x"] * 5}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": 1}, "stop"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"documents": [{}]}, "documents"),
        ({"vllm_xargs": {}}, "vllm_xargs"),
        ({"extra_args": {}}, "extra_args"),
        ({"cache_salt": "proj_1"}, "cache_salt"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"kv_transfer_params": {}}, "kv_transfer_params"),
        ({"n": 1000}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "chef", "content": "x"}]}, "messages[0].role"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}
                ]
            },
            "messages[0].content[0]",
        ),
    ],
)
def test_what_is_refused_never_reaches_an_engine(
    http: httpx2.Client, engine: EngineStandIn, extra: dict[str, Any], param: str
) -> None:
    response = http.post("/v1/chat/completions", json=ASK | extra)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].startswith(param)
    assert engine.bodies == []


@pytest.mark.parametrize(
    "model", ["../../etc/passwd", "ft:nobody", "x" * 255, "\u0001", f"ft:{BASE_MODEL}:other::1"]
)
def test_models_that_are_not_there(http: httpx2.Client, engine: EngineStandIn, model: str) -> None:
    response = http.post("/v1/chat/completions", json=ASK | {"model": model})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert engine.bodies == []


def test_without_an_engine_it_is_503(client: OpenAI, http: httpx2.Client, database: Database) -> None:
    def refused(says: str) -> None:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**ASK)
        assert (caught.value.status_code, caught.value.code) == (503, "engine_unavailable")
        assert caught.value.response.headers["retry-after"] == "5"
        assert says in str(caught.value)
        wait_until(lambda: says in http.get("/health/ready").text, f"ready says {says}")
        assert http.get("/health/ready").status_code == 503

    refused("none is running")
    register_engine(database, "unix:/nowhere", status="starting", detail="loading the model")
    refused("loading the model")
    register_engine(database, "unix:/nowhere", heartbeat_at=database_now() - 100)
    refused("loading the model")
    register_engine(database, "unix:/nowhere")
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**ASK)
    assert (caught.value.status_code, caught.value.code) == (503, "engine_unavailable")


def test_an_engines_refusals_are_in_the_envelope(client: OpenAI, engine: EngineStandIn) -> None:
    engine.behaviour = "refuse"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ASK)
    assert (refused.value.code, refused.value.type) == ("context_length_exceeded", "invalid_request_error")
    engine.behaviour = "unknown"
    with pytest.raises(openai.InternalServerError) as unknown:
        client.chat.completions.create(**ASK)
    assert (unknown.value.status_code, unknown.value.code) == (503, "model_not_loaded")
    engine.behaviour = "fail"
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(**ASK)
    assert (failed.value.status_code, failed.value.code) == (503, "engine_error")
    assert "secret" not in str(failed.value)


def test_a_stream_that_breaks_says_so(client: OpenAI, engine: EngineStandIn) -> None:
    engine.behaviour = "break"
    received: list[str | None] = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in client.chat.completions.create(**ASK, stream=True):
            received += [chunk.choices[0].delta.content]
    assert received == ["0 "]
    assert caught.value.code == "engine_unavailable"


@pytest.mark.parametrize("behaviour", ["endless", "pause"])
def test_a_client_that_leaves_stops_the_engine(client: OpenAI, engine: EngineStandIn, behaviour: str) -> None:
    engine.behaviour = behaviour
    stream = client.chat.completions.create(**ASK, stream=True)
    next(iter(stream))
    stream.close()
    wait_until(engine.disconnected.is_set, "the engine is told")
    assert engine.chunks_sent < 1000


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_byte_stops_the_engine(
    service: Service, engine: EngineStandIn, stream: bool
) -> None:
    engine.behaviour = "silent"
    host, _, port = service.url.removeprefix("http://").partition(":")
    body = json.dumps(ASK | {"stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer {API_KEY}\r\nhost: x\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: engine.bodies, "the engine is asked")
    wait_until(engine.disconnected.is_set, "the engine is told")
    with service.http(None) as http:
        wait_until(lambda: 'status_code="499"' in http.get("/metrics").text, "the request is counted")


def test_what_has_ended_answers_no_more_within_seconds(
    service: Service, client: OpenAI, database: Database, engine: EngineStandIn, cache_clock: CacheClock
) -> None:
    with database.writer() as session:
        project = auth_service.create_project(session, "default")
        key, secret = auth_service.create_key(session, project.id, "short-lived")
        name = f"ft:{BASE_MODEL}:default::1"
        session.add(Adapter(name=name, project_id=project.id, base_model=BASE_MODEL, storage_key="none"))
    with service.client(secret) as short_lived:

        def fails(status: int, asking: OpenAI, model: str) -> bool:
            try:
                asking.chat.completions.create(**ASK | {"model": model})
            except openai.APIStatusError as error:
                return error.status_code == status
            return False

        assert not fails(404, client, name)
        client.models.delete(name)
        cache_clock.pass_time(MOVES)
        assert fails(404, client, name)
        assert not fails(401, short_lived, BASE_MODEL)
        with database.writer() as session:
            auth_service.revoke_key(session, key.id)
        cache_clock.pass_time(CHANGES)
        assert fails(401, short_lived, BASE_MODEL)
