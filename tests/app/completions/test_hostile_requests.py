"""Names and bodies that mean harm end in the envelope, and never reach an engine."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any

import httpx2
import pytest

from app.completions.schemas import ChatCompletionRequest, CompletionRequest, GatewayRequest
from app.core.errors import InvalidRequestError
from app.core.settings import Settings
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.service import API_KEY, BASE_MODEL

pytestmark = pytest.mark.one_database

CHAT = "/v1/chat/completions"
TEXT = {"type": "text", "text": ""}


def turn(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


DEEP = "[" * 100_000 + "]" * 100_000


def error_of(response: httpx2.Response) -> dict[str, Any]:
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 2000
    return error


@pytest.mark.parametrize(
    "model",
    [
        "../../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "/etc/passwd",
        f"{BASE_MODEL}/../x",
        f"{BASE_MODEL}\u0000",
        f"{BASE_MODEL}\n",
        "\u202e\u0007\u001b[2J",
        "' OR 1=1 --",
        "ft:" + "x" * 252,
        "ft:*",
        "%",
        "__proto__",
    ],
)
def test_hostile_model_names(http: httpx2.Client, engine: EngineStandIn, model: str) -> None:
    error = error_of(http.post(CHAT, json=ASK | {"model": model}))
    assert error["code"] in ("model_not_found", "invalid_value")
    assert engine.bodies == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        DEEP.encode(),
        json.dumps(ASK)[:-1].encode() + b', "metadata": {"a": ' + DEEP.encode() + b"}}",
        json.dumps(ASK | {"tools": []})[:-3].encode() + DEEP.encode() + b"}",
        json.dumps(ASK)[:-1].encode() + b', "temperature": NaN}',
        json.dumps(ASK)[:-1].encode() + b', "seed": 1' + b"0" * 5000 + b"}",
        json.dumps(ASK)[:-1].encode() + b', "max_tokens": 1e400}',
        json.dumps(ASK | {"model": "x" * 1_000_000}).encode(),
        json.dumps(ASK | {"model": "\ud800"}).encode(),
        json.dumps(ASK | {"messages": [{"role": "user", "content": "\ud800"}]}).encode(),
        json.dumps(ASK | {"messages": {"role": "user"}}).encode(),
        json.dumps(ASK | {"x" * 100_000: 1}).encode(),
        json.dumps(ASK | {"stream": {"a": 1}}).encode(),
        json.dumps(ASK | {"stop": ["x"] * 5}).encode(),
    ],
    ids=range(20),
)
def test_hostile_bodies(http: httpx2.Client, engine: EngineStandIn, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    error_of(http.post(CHAT, content=body, headers=headers))
    assert engine.bodies == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [' + b"1," * 2_000_000 + b"1]}",
        b'{"messages": [' + b"{}," * 100_000 + b"{}]}",
        json.dumps(ASK | {f"field{number}": 1 for number in range(100_000)}).encode(),
        json.dumps(ASK | {"logit_bias": {f"x{number}": 1 for number in range(100_000)}}).encode(),
        b'{"prompt": [' + b"[]," * 2_000_000 + b"[]]}",
        b'{"prompt": [' + b"-1," * 500_000 + b"-1]}",
        json.dumps(ASK | {"messages": [{"role": "user", "content": ""}] * 250_000}).encode(),
        json.dumps(ASK | {"messages": [{"role": "user", "content": [TEXT] * 250_000}]}).encode(),
        json.dumps(ASK | {"messages": [{"role": "user", "content": [TEXT] * 1000}] * 250}).encode(),
        json.dumps(ASK | {"tools": [{"type": "function", "function": {"name": "f"}}] * 100_000}).encode(),
    ],
    ids=range(10),
)
def test_a_body_with_very_many_values_holds_up_nobody(
    http: httpx2.Client, engine: EngineStandIn, body: bytes
) -> None:
    path = CHAT if b"messages" in body else "/v1/completions"
    started = time.process_time()
    error_of(http.post(path, content=body))
    assert time.process_time() - started < 10  # pydantic's own report of a million errors takes a minute
    assert engine.bodies == []


def test_a_body_over_the_limit(http: httpx2.Client, engine: EngineStandIn) -> None:
    def chunks():
        for _ in range(17 * 16):
            yield b"x" * 65536

    assert error_of(http.post(CHAT, content=b"x" * (17 * 2**20)))["code"] == "body_too_large"
    assert error_of(http.post(CHAT, content=chunks()))["code"] == "body_too_large"
    assert engine.bodies == []


def test_the_last_of_two_equal_fields_counts_for_the_check_and_for_the_engine(
    http: httpx2.Client,
    engine: EngineStandIn,
) -> None:
    body = b'{"model": "nothing", "cache_salt\\u0000": 1,' + json.dumps(ASK)[1:].encode()
    error_of(http.post(CHAT, content=body))
    twice = b'{"model": "nothing", "temperature": 5,' + json.dumps(ASK | {"temperature": 1})[1:].encode()
    assert http.post(CHAT, content=twice).status_code == 200
    assert (engine.bodies[-1]["model"], engine.bodies[-1]["temperature"]) == (BASE_MODEL, 1)


def test_control_characters_in_a_prompt_are_text(http: httpx2.Client, engine: EngineStandIn) -> None:
    content = "\u0000\u0007\u2028\x1b[2J é 🧑‍🍳"
    response = http.post(CHAT, json=ASK | {"messages": [{"role": "user", "content": content}]})
    assert response.status_code == 200
    assert engine.bodies[-1]["messages"][0]["content"] == content


def test_without_a_key_nothing_is_read(service: Any, engine: EngineStandIn) -> None:
    with service.http(None) as http:
        for authorization in ("", "Bearer", "Basic eA==", f"Basic {API_KEY}", "Bearer \u00e9"):
            headers = {"authorization": authorization.encode("latin-1")}
            response = http.post(CHAT, content=b"{", headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "extra",
    [
        '"input": ' + DEEP,
        '"input": [' + '{"role": "user", "content": "x"},' * 5000 + '{"role": "user", "content": "x"}]',
        '"input": [' + "1," * 100_000 + "1]",
        '"input": [{"type": ["message"], "role": "user", "content": "x"}]',
        '"input": [{"type": "item_reference", "id": "' + "x" * 1000 + '"}]',
        '"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://10.0.0.1/"}]}]',
        '"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "file:///etc/passwd"}]}]',
        '"input": "x", "previous_response_id": "../../etc/passwd"',
        '"input": "x", "previous_response_id": "\\u0000"',
        '"input": "x", "prompt": {"id": "x", "variables": {}}',
        '"input": "x", "previous_input_messages": [{}]',
        '"input": "x", "structured_outputs": {"regex": "(a+)+$"}',
        '"input": "x", "tools": [{"type": "mcp", "server_label": "x", "server_url": "http://10.0.0.1/"}]',
        '"input": "x", "metadata": {"a": "\\u0000"}',
        '"input": "x", "vllm_xargs": {"a": 1}, "kv_transfer_params": {}',
    ],
    ids=range(15),
)
def test_hostile_requests_for_responses(http: httpx2.Client, engine: EngineStandIn, extra: str) -> None:
    body = f'{{"model": "{BASE_MODEL}", {extra}}}'
    error_of(http.post("/v1/responses", content=body, headers={"content-type": "application/json"}))
    assert engine.bodies == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"enum": True, "properties": True, "$ref": {"type": "string"}}},
        {"type": "object", "default": {"$ref": "#/nowhere", "enum": 5}, "examples": [{"properties": 1}]},
        {"const": {"$ref": 1, "properties": True}},
        {"type": "object", "properties": {"default": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"enum": [1]}}},
    ],
)
def test_names_and_data_in_schemas_are_no_keywords(
    http: httpx2.Client, engine: EngineStandIn, schema: dict[str, Any]
) -> None:
    json_schema = {"name": "a", "schema": schema}
    body = ASK | {"response_format": {"type": "json_schema", "json_schema": json_schema}}
    response = http.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    json_schema["schema"] = {"default": {"enum": []}, "properties": {"a": {"$ref": "#/default"}}}
    assert "no schema" in error_of(http.post(CHAT, json=body))["message"]


HUGE = 10**30
HUGE_SCHEMA = {"type": "object", "properties": {"a": {"minimum": HUGE}}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, ASK | {"max_tokens": HUGE}),
        (CHAT, ASK | {"max_completion_tokens": HUGE}),
        (CHAT, ASK | {"top_k": HUGE}),
        (CHAT, ASK | {"min_tokens": HUGE}),
        (CHAT, ASK | {"seed": HUGE}),
        (CHAT, ASK | {"tools": [{"type": "function", "function": {"name": "a", "parameters": HUGE_SCHEMA}}]}),
        ("/v1/completions", {"model": BASE_MODEL, "prompt": "Soup?", "max_tokens": HUGE}),
        ("/v1/responses", {"model": BASE_MODEL, "input": "Soup?", "top_k": HUGE}),
        (
            "/v1/responses",
            {
                "model": BASE_MODEL,
                "input": "?",
                "tools": [{"type": "function", "name": "a", "parameters": HUGE_SCHEMA}],
            },
        ),
        ("/v1/responses", {"model": BASE_MODEL, "input": "Soup?", "max_output_tokens": HUGE}),
        ("/v1/responses", {"model": BASE_MODEL, "input": "Soup?", "max_tool_calls": HUGE}),
    ],
)
def test_counts_that_no_engine_can_hold(
    http: httpx2.Client, engine: EngineStandIn, path: str, body: dict[str, Any]
) -> None:
    assert error_of(http.post(path, json=body))["param"].partition("[")[0] == list(body)[-1]
    assert engine.bodies == []


def test_a_long_conversation_reaches_the_engine_whole(http: httpx2.Client, engine: EngineStandIn) -> None:
    turn = {"role": "user", "content": "Soup? " * 200}
    response = http.post(CHAT, json=ASK | {"messages": [turn] * 2000})
    assert response.status_code == 200, response.text
    assert len(engine.bodies[-1]["messages"]) == 2000


@pytest.mark.parametrize("messages", [[turn("x")] * 2049, [turn([TEXT] * 1000)] * 3])
def test_more_messages_and_parts_than_the_context_has_tokens(
    http: httpx2.Client, engine: EngineStandIn, messages: list[Any]
) -> None:
    error = error_of(http.post(CHAT, json=ASK | {"messages": messages}))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    items = [each | {"type": "message"} for each in messages]
    items = json.loads(json.dumps(items).replace('"text", "text"', '"input_text", "text"'))
    error = error_of(http.post("/v1/responses", json={"model": BASE_MODEL, "input": items}))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    assert engine.bodies == []


CALL = {"id": "a", "type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "arguments",
    ["[" * 100_000, '{"a":' * 200 + "1" + "}" * 200, '{"a": ' + "1" * 5000 + "}", '{"a": "\\ud800"}'],
    ids=range(4),
)
def test_arguments_that_engines_fail_on(http: httpx2.Client, engine: EngineStandIn, arguments: str) -> None:
    """They would be answered with 503, which clients repeat."""
    arguments = arguments.replace("\\\\", "\\")
    call = CALL | {"function": {"name": "f", "arguments": arguments}}
    said = {"role": "assistant", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "a", "content": "x"}
    error = error_of(http.post(CHAT, json=ASK | {"messages": [said, result]}))
    assert error["param"] == "messages[0].tool_calls[0].function.arguments"
    item = {"type": "function_call", "call_id": "a", "name": "f", "arguments": arguments}
    output = {"type": "function_call_output", "call_id": "a", "output": "x"}
    error = error_of(http.post("/v1/responses", json={"model": BASE_MODEL, "input": [item, output]}))
    assert error["param"] == "input[0].arguments"
    assert engine.bodies == []


@pytest.mark.parametrize("arguments", ["", "{", '{"a": [1]}', "no JSON", "[]", "{'a': 1}"])
def test_arguments_that_a_model_may_have_written(
    http: httpx2.Client, engine: EngineStandIn, arguments: str
) -> None:
    call = CALL | {"function": {"name": "f", "arguments": arguments}}
    messages = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "x"},
    ]
    response = http.post(CHAT, json=ASK | {"messages": messages})
    assert response.status_code == 200, response.text
    assert engine.bodies[-1]["messages"][0]["tool_calls"][0]["function"]["arguments"] == arguments


def test_a_long_name_in_a_schema_is_not_copied_for_each_value(
    http: httpx2.Client, engine: EngineStandIn
) -> None:
    schema = {"type": "object", "x" * 30_000: [0] * 15_000}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    tracemalloc.start()
    response = http.post(CHAT, json=ASK | {"tools": tools})
    assert response.status_code == 200, response.text
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()


def test_the_answers_to_one_request_are_bounded_together(settings: Settings) -> None:
    [base] = [base for base in settings.base_models if base.name == BASE_MODEL]
    base = base.model_copy(update={"context": 2**20})

    def refused(request: GatewayRequest) -> str | None:
        try:
            request.check(base)
        except InvalidRequestError as error:
            return error.body.param
        return None

    assert refused(ChatCompletionRequest.model_validate(ASK)) is None
    assert refused(ChatCompletionRequest.model_validate(ASK | {"n": 16})) == "n"
    assert refused(ChatCompletionRequest.model_validate(ASK | {"n": 16, "max_tokens": 2**20})) == "n"
    assert refused(ChatCompletionRequest.model_validate(ASK | {"n": 16, "max_tokens": 1000})) is None
    prompts = {"model": BASE_MODEL, "prompt": ["x" * 100_000] * 64}
    assert refused(CompletionRequest.model_validate(prompts)) == "prompt"
    assert refused(CompletionRequest.model_validate(prompts | {"prompt": ["Soup?"] * 64})) is None
