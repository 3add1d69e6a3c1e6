"""`POST /v1/responses`: what reaches an engine, what the client gets, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.support.engine_stand_in import EngineStandIn
from tests.support.service import BASE_MODEL
from tests.support.usage import totals, usage
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database

ASK: dict[str, Any] = {"model": BASE_MODEL, "input": "Soup?"}
STATELESS: dict[str, Any] = ASK | {"store": False}
STOCK: dict[str, Any] = {
    "type": "function",
    "name": "stock",
    "description": "What is there.",
    "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    "strict": True,
}

STREAMED: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def events_of(http: httpx2.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream; their names, and their numbers in a row, are checked."""
    response = http.post("/v1/responses", json=body | {"stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *blocks, nothing = response.text.split("\n\n")
    assert nothing == ""
    events: list[dict[str, Any]] = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        STREAMED.validate_python(event, strict=True)
        events.append(event)
    return events


def test_an_answer_is_openais_object(http: httpx2.Client, engine: EngineStandIn) -> None:
    answer = http.post("/v1/responses", json=STATELESS | {"metadata": {"a": "b"}, "user": "u"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-toque-replica"]
    response = answer.json()
    [message] = response.pop("output")
    assert message.pop("id").startswith("msg_")
    text = {"type": "output_text", "text": "Leek soup.", "annotations": [], "logprobs": []}
    assert message == {"type": "message", "status": "completed", "role": "assistant", "content": [text]}
    assert response.pop("id").startswith("resp_")
    assert response.pop("completed_at") >= response.pop("created_at") > 1_700_000_000
    assert response == {
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": BASE_MODEL,
        "temperature": 1.0,
        "top_p": 1.0,
        "usage": {
            "input_tokens": 5,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 8,
        },
        "background": False,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "truncation": "disabled",
        "user": "u",
    }


def test_a_stream_has_the_events_of_the_specification_in_their_order(
    http: httpx2.Client, engine: EngineStandIn
) -> None:
    events = events_of(http, STATELESS)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    created, *_, done, completed = events
    assert created["response"]["status"] == "in_progress"
    assert completed["response"]["output"] == [done["item"]]
    ids = {event["item_id"] for event in events if "item_id" in event}
    assert ids == {done["item"]["id"]}
    assert {event["response"]["id"] for event in events if "response" in event} == {
        completed["response"]["id"]
    }
    whole = http.post("/v1/responses", json=STATELESS).json()
    kept = ("id", "created_at", "completed_at", "output")
    streamed = completed["response"]
    assert {name: whole[name] for name in whole if name not in kept} == {
        name: streamed[name] for name in streamed if name not in kept
    }


def test_an_answer_that_is_cut_off_is_incomplete(http: httpx2.Client, engine: EngineStandIn) -> None:
    body = STATELESS | {"max_output_tokens": 1}
    whole = http.post("/v1/responses", json=body).json()
    *_, done, last = events_of(http, body)
    assert last["type"] == "response.incomplete"
    assert done["item"]["status"] == "incomplete"
    for response in (whole, last["response"]):
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["max_output_tokens"] == 1
        assert [item["status"] for item in response["output"]] == ["incomplete"]
        assert "completed_at" not in response


def test_an_answer_that_a_stopping_engine_aborts_is_none(http: httpx2.Client, engine: EngineStandIn) -> None:
    engine.behaviour = "stop"
    refused = http.post("/v1/responses", json=ASK)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    *_, done, error, last = events_of(http, ASK)
    assert [done["type"], error["type"], last["type"]] == [
        "response.output_item.done",
        "error",
        "response.failed",
    ]
    assert done["item"]["status"] == "incomplete"
    assert last["response"]["status"] == "failed"


def test_log_probabilities(http: httpx2.Client, engine: EngineStandIn) -> None:
    body = STATELESS | {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    whole = http.post("/v1/responses", json=body).json()
    assert engine.bodies[-1]["top_logprobs"] == 1
    logprobs = whole["output"][0]["content"][0]["logprobs"]
    assert [each["token"] for each in logprobs] == ["Leek", " soup", "."]
    assert logprobs[0]["top_logprobs"] == [{"token": "Leek", "logprob": -0.5, "bytes": [76, 101, 101, 107]}]
    events = events_of(http, body)
    deltas = [event["logprobs"] for event in events if event["type"].endswith("text.delta")]
    [done] = [event["logprobs"] for event in events if event["type"].endswith("text.done")]
    assert done == [each for delta in deltas for each in delta]
    assert done[0]["top_logprobs"] == [{"token": "Leek", "logprob": -0.5}]


def test_what_an_engine_sees(client: OpenAI, engine: EngineStandIn) -> None:
    client.responses.create(
        **STATELESS,
        instructions="Be brief.",
        max_output_tokens=20,
        temperature=0.5,
        top_p=0.9,
        tools=[STOCK],  # pyright: ignore[reportArgumentType]
        tool_choice={"type": "function", "name": "stock"},
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}},
        include=["reasoning.encrypted_content"],
        truncation="disabled",
        user="u",
        metadata={"a": "b"},
        max_tool_calls=3,
        reasoning={"mode": "standard", "context": "auto"},  # pyright: ignore[reportArgumentType]
        extra_body={
            "top_k": 7,
            "seed": 3,
            "service_tier": "auto",
            "prompt_cache_retention": "24h",
            "prompt_cache_options": {"ttl": "30m"},
            "moderation": None,
        },
    )
    salt = engine.bodies[-1].pop("cache_salt")
    assert salt.startswith("proj_")
    assert engine.bodies[-1] == {
        "model": BASE_MODEL,
        "store": False,
        "input": [{"type": "message", "role": "user", "content": "Soup?"}],
        "instructions": "Be brief.",
        "max_output_tokens": 20,
        "temperature": 0.5,
        "top_p": 0.9,
        "tools": [STOCK],
        "tool_choice": {"type": "function", "name": "stock"},
        "parallel_tool_calls": False,
        "text": {
            "format": {
                "type": "json_schema",
                "name": "s",
                "schema": {"type": "object"},
                "strict": True,
            }
        },
        "top_k": 7,
        "seed": 3,
    }


def test_items_reach_an_engine_as_it_understands_them(client: OpenAI, engine: EngineStandIn) -> None:
    items: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "short"}],
            "content": [{"type": "reasoning_text", "text": "x"}, {"type": "reasoning_text", "text": "y"}],
            "encrypted_content": None,
        },
        {"type": "reasoning", "id": "rs_2", "summary": []},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "incomplete",
            "content": [
                {"type": "output_text", "text": "Le", "annotations": [], "logprobs": [], "parsed": None},
                {"type": "output_text", "text": "ek", "annotations": []},
            ],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "stock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "3"}]},
        {"role": "assistant", "content": "Three.", "phase": None},
    ]
    client.responses.create(**STATELESS | {"input": items})
    sent = engine.bodies[-1]["input"]
    assert sent[2].pop("id").startswith("rs_")
    assert sent == [
        {"type": "message", "role": "developer", "content": "Be brief."},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "x\ny"}]},
        {"type": "message", "role": "assistant", "content": "Leek"},
        {"type": "function_call", "call_id": "c1", "name": "stock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
        {"type": "message", "role": "assistant", "content": "Three."},
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_function_is_called_and_its_output_sent_back(
    client: OpenAI, http: httpx2.Client, engine: EngineStandIn, stream: bool
) -> None:
    body = STATELESS | {"tools": [STOCK], "tool_choice": "required"}
    if stream:
        events = events_of(http, body)
        assert [event["type"].removeprefix("response.") for event in events][2:-1] == [
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
        ]
        output = events[-1]["response"]["output"]
    else:
        output = http.post("/v1/responses", json=body).json()["output"]
    [call] = output
    assert call.pop("id").startswith("fc_")
    assert call == {
        "type": "function_call",
        "status": "completed",
        "call_id": "call_1",
        "name": "stock",
        "arguments": '{"name": "leek"}',
    }
    result = {"type": "function_call_output", "call_id": "call_1", "output": "3"}
    again = client.responses.create(
        **STATELESS | {"input": [{"role": "user", "content": "Soup?"}, *output, result], "tools": [STOCK]}
    )
    assert again.output_text == "Leek soup."


def test_allowed_tools_are_all_that_an_engine_sees(http: httpx2.Client, engine: EngineStandIn) -> None:
    other = STOCK | {"name": "other"}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}]}
    answer = http.post(
        "/v1/responses", json=STATELESS | {"tools": [STOCK, other], "tool_choice": choice}
    ).json()
    assert (engine.bodies[-1]["tools"], engine.bodies[-1]["tool_choice"]) == ([other], "required")
    assert (answer["tools"], answer["tool_choice"]) == ([STOCK, other], choice)


def test_the_official_client_parses_and_streams(client: OpenAI, engine: EngineStandIn) -> None:
    class Stock(BaseModel):
        name: str

    tool: Any = openai.pydantic_function_tool(Stock)
    parsed = client.responses.parse(**STATELESS, tools=[tool], tool_choice="required")
    [call] = parsed.output
    assert call.type == "function_call"
    assert call.parsed_arguments == Stock(name="leek")
    with client.responses.stream(**STATELESS) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert texts == ["Leek", " soup", "."]
        assert stream.get_final_response().output_text == "Leek soup."


SCHEMA = "text.format.schema"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type"),
    ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [STOCK], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
    ({"tools": [STOCK], "tool_choice": {"type": "web_search_preview"}}, "tool_choice.type"),
    ({"tools": [STOCK], "model": "no-parser"}, "tools"),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"truncation": "auto"}, "truncation"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"messages": []}, "messages"),
    ({"n": 2}, "n"),
    ({"previous_input_messages": []}, "previous_input_messages"),
    ({"request_id": "x"}, "request_id"),
    ({"chat_template_kwargs": {}}, "chat_template_kwargs"),
    ({"include": ["message.everything"]}, "include[0]"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"$ref": "#/nowhere"}}}}, SCHEMA),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"reasoning": {"effort": "high"}, "model": "no-parser"}, "reasoning.effort"),
    (
        {
            "tools": [STOCK],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "other"}],
            },
        },
        "tool_choice.tools",
    ),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": [5]}, "input[0]"),
    ({"input": [{"role": "chef", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"type": "computer_call", "id": "x"}]}, "input[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
    (
        {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]},
        "input[0].encrypted_content",
    ),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}, "input"),
    ({"previous_response_id": "resp_nobody"}, "previous_response_id"),
    ({"previous_response_id": "\u0000"}, "previous_response_id"),
]


@pytest.mark.parametrize(
    ("extra", "param"), REFUSED, ids=[f"{param}-{at}" for at, (_, param) in enumerate(REFUSED)]
)
def test_what_is_refused_never_reaches_an_engine(
    http: httpx2.Client, engine: EngineStandIn, extra: dict[str, Any], param: str
) -> None:
    response = http.post("/v1/responses", json=ASK | extra)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert "Value error" not in error["message"]
    assert engine.bodies == []


def test_an_engines_refusal_is_in_the_envelope(client: OpenAI, engine: EngineStandIn) -> None:
    engine.behaviour = "refuse"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**STATELESS)
    assert refused.value.code == "context_length_exceeded"


def test_a_stream_that_breaks_says_so(http: httpx2.Client, engine: EngineStandIn) -> None:
    engine.behaviour = "break"
    *_, error, failed = events_of(http, STATELESS)
    assert (error["type"], error["code"], error["param"]) == ("error", "engine_unavailable", None)
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": error["message"]}
    assert failed["response"]["output"] == []


def test_a_stream_that_never_begins_is_an_error(client: OpenAI, engine: EngineStandIn) -> None:
    engine.behaviour = "break at once"
    with pytest.raises(openai.InternalServerError) as caught:
        client.responses.create(**STATELESS, stream=True)
    assert caught.value.code == "engine_unavailable"


def test_a_client_that_leaves_stops_the_engine(client: OpenAI, engine: EngineStandIn) -> None:
    engine.behaviour = "pause"
    stream = client.responses.create(**STATELESS, stream=True)
    next(iter(stream))
    stream.close()
    wait_until(engine.disconnected.is_set, "the engine is told")


def test_tokens_are_counted(http: httpx2.Client, engine: EngineStandIn) -> None:
    assert http.post("/v1/responses", json=STATELESS).status_code == 200
    events_of(http, STATELESS)
    wait_until(lambda: totals(usage(http)) == (2, 10, 6), "the usage is written")
