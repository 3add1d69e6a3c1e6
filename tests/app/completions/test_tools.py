"""Tools in requests: which bases take them, what an engine is sent, and what is refused before."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from app.completions.schemas.constraint import check_constraint
from app.core.json_schema import check_schema
from tests.support.engine_stand_in import ASK, EngineStandIn

pytestmark = pytest.mark.one_database

CHAT = "/v1/chat/completions"
PLAIN = {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]}
RECURSIVE = {
    "$defs": {"step": {"type": "object", "properties": {"then": {"$ref": "#/$defs/step"}}}},
    "$ref": "#/$defs/step",
}


def tool(name: str = "stock", parameters: Any = PLAIN, **extra: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **extra}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def refused(http: httpx2.Client, engine: EngineStandIn, body: dict[str, Any]) -> dict[str, Any]:
    response = http.post(CHAT, json=ASK | body)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error"), error
    assert set(error) == {"message", "type", "param", "code"}
    assert "--enable-auto-tool-choice" not in error["message"]
    assert engine.bodies == []
    return error


@pytest.mark.parametrize("choice", [None, "auto", "required", named("stock")])
@pytest.mark.parametrize(
    ("model", "remedy"), [("no-parser", "--tool-parser"), ("no-place-for-tools", "--chat-template")]
)
def test_a_base_without_tools_says_what_to_set(
    http: httpx2.Client, engine: EngineStandIn, model: str, remedy: str, choice: Any
) -> None:
    error = refused(http, engine, {"model": model, "tools": [tool()], "tool_choice": choice})
    assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")
    assert f"`toque models add … {remedy}" in error["message"]


def test_without_calls_the_model_does_not_see_the_tools(http: httpx2.Client, engine: EngineStandIn) -> None:
    for body in (
        {"tools": [tool()], "tool_choice": "none", "parallel_tool_calls": False},
        {"tool_choice": "none"},
        {"tool_choice": "auto", "parallel_tool_calls": True},
    ):
        assert http.post(CHAT, json=ASK | body).status_code == 200
        assert not {"tools", "tool_choice", "parallel_tool_calls"} & engine.bodies[-1].keys()


@pytest.mark.parametrize("choice", ["auto", "required", named("stock")])
@pytest.mark.parametrize("parameters", [PLAIN, RECURSIVE, {}, {"type": "object", "additionalProperties": {}}])
def test_tools_reach_the_engine_as_they_are(
    http: httpx2.Client, engine: EngineStandIn, choice: Any, parameters: Any
) -> None:
    body = {"tools": [tool(parameters=parameters), tool("order", None)], "tool_choice": choice}
    assert http.post(CHAT, json=ASK | body).status_code == 200
    assert engine.bodies[-1]["tools"] == [
        tool(parameters=parameters),
        {"type": "function", "function": {"name": "order"}},
    ]
    assert engine.bodies[-1]["tool_choice"] == choice


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"tools": []}, "tools", "at least 1 item"),
        ({"tools": [tool(f"f{number}") for number in range(129)]}, "tools", "at most 128 items"),
        ({"tools": [tool("stock now")]}, "tools[0].function.name", "pattern"),
        ({"tools": [tool("s" * 65)]}, "tools[0].function.name", "pattern"),
        ({"tools": [tool(), tool("order"), tool()]}, "tools[2].function.name", "'stock' already"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "'custom'"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "Missing required parameter"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", "an object"),
        ({"tools": [tool(strict="x")]}, "tools[0].function.strict", "boolean"),
        ({"tools": [tool(defer=1)]}, "tools[0].function.defer", "Unknown parameter"),
        ({"tool_choice": "required"}, "tool_choice", "no 'tools'"),
        ({"tool_choice": named("stock")}, "tool_choice", "no 'tools'"),
        ({"tools": [tool()], "tool_choice": named("order")}, "tool_choice", "'order'"),
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice", "'required'"),
        ({"tools": [tool()], "tool_choice": 1}, "tool_choice", "'required'"),
        ({"tools": [tool()], "tool_choice": {}}, "tool_choice.type", "Missing required parameter"),
        (
            {
                "tools": [tool()],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [named("stock")]},
                },
            },
            "tool_choice.type",
            "'allowed_tools'",
        ),
        ({"functions": [{"name": "stock"}]}, "functions", "'tools'"),
        ({"function_call": "auto"}, "function_call", "'tool_choice'"),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]},
            "messages[0].function_call",
            "'tool_calls'",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "custom"}]}]},
            "messages[0].tool_calls[0].type",
            "'custom'",
        ),
    ],
)
def test_what_is_refused_by_name(
    http: httpx2.Client, engine: EngineStandIn, body: dict[str, Any], param: str, says: str
) -> None:
    error = refused(http, engine, body)
    assert error["param"] == param
    assert says in error["message"]


def deep(levels: int) -> dict[str, Any]:
    return json.loads('{"properties": {"a": ' * levels + "{}" + "}}" * levels)


HUGE = {"enum": [f"value {number} " * 100 for number in range(10_000)]}
SCHEMAS_TOO_LARGE = {
    "many properties": {"properties": {f"p{number}": {} for number in range(5000)}},
    "values": HUGE,
    "pattern": {"type": "string", "pattern": "a" * 53_000},
    "repeated": {"type": "string", "pattern": "(a?){5000}" * 3},
    "nested counts": {"type": "string", "pattern": "((a?){1000}){1000}"},
    "depth": deep(70),
    "objects": {"allOf": [{}] * 3000},
    "not a schema": {"type": "nonsense"},
    "no properties": {"properties": []},
    "fetched": {"$schema": "http://127.0.0.1:1/schema", "type": 5},
}
ENDLESS = {
    "properties": {"properties": {f"p{number}": {} for number in range(501)}},
    "enum": {"enum": list(range(1001))},
    "long": {"type": "string", "maxLength": 100_000},
    "items": {"type": "array", "minItems": 1e30},
    "patterns": {
        "properties": {f"p{n}": {"type": "string", "pattern": f"[a-z]{{64}}{n}"} for n in range(30)}
    },
    "count": {"type": "string", "pattern": "^[a-z]{1,129}$"},
    "lengths": {"properties": {f"p{n}": {"type": "string", "maxLength": 150 + n} for n in range(9)}},
    "less than nothing": {
        "properties": {f"p{n}": {"type": "string", "maxLength": 150 + n} for n in range(9)},
        "unknown": {"minLength": -(2**53), "maxLength": -(2**53)},
    },
    "ranges": {"type": "string", "pattern": "^" + "[a-z0-9 ]{1,16}" * 10 + "$"},
    "options": {"type": "string", "pattern": "^" + "[a-z]?" * 128 + "$"},
    "in a group": {"type": "string", "pattern": "^([a-z]{1,16}){12}$"},
    "alternatives": {"type": "string", "pattern": "^(.|..|...){42}$"},
    "back": {"type": "string", "pattern": r"(a)\1"},
    "itself": {"$ref": "#"},
    "circle": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}},
        "$ref": "#/$defs/a",
    },
    "missing": {"$ref": "#/$defs/none"},
    "elsewhere": {"$ref": "http://127.0.0.1:1/schema"},
    "chain": {
        "$defs": {str(number): {"$ref": f"#/$defs/{number + 1}"} for number in range(1500)} | {"1500": {}},
        "$ref": "#/$defs/0",
    },
}


@pytest.mark.parametrize("schema", SCHEMAS_TOO_LARGE.values(), ids=SCHEMAS_TOO_LARGE)
def test_no_engine_sees_a_schema_that_is_none_or_too_large(
    http: httpx2.Client, engine: EngineStandIn, schema: dict[str, Any]
) -> None:
    error = refused(http, engine, {"tools": [tool(), tool("order", schema)]})
    assert error["param"] == ("tools" if schema == HUGE else "tools[1].function.parameters")
    assert len(error["message"]) < 500
    asked = {"type": "json_schema", "json_schema": {"name": "dish", "schema": schema}}
    assert refused(http, engine, {"response_format": asked})["param"] == "response_format.json_schema.schema"


USUAL = {
    "lengths": {"properties": {f"p{n}": {"type": "string", "maxLength": 2**n} for n in range(1, 12)}},
    "equal lengths": {"properties": {f"p{n}": {"type": "string", "maxLength": 200} for n in range(50)}},
    "equal long texts": {"properties": {f"p{n}": {"type": "string", "maxLength": 4000} for n in range(5)}},
    "uuid": {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
    "address": {"type": "string", "pattern": r"^[\w.+-]+@[\w-]+(\.[\w-]+)*\.[a-z]{2,24}$"},
    "telephone": {"type": "string", "pattern": r"^\+?[0-9]{1,3}([ -]?[0-9]{2,4}){1,5}$"},
    "text": {"type": "string", "pattern": "^.{1,100}$"},
    "names": {"type": "string", "pattern": f"^({'|'.join(f'country{n}' for n in range(80))})$"},
    "equal patterns": {
        "properties": {f"p{n}": {"type": "string", "pattern": "^[A-Z]{2,8}$"} for n in range(50)}
    },
}


@pytest.mark.parametrize("schema", USUAL.values(), ids=USUAL)
def test_usual_schemas_are_compiled(schema: dict[str, Any]) -> None:
    check_schema(schema)
    check_constraint(schema)


def test_all_schemas_of_a_request_are_bounded_together(http: httpx2.Client, engine: EngineStandIn) -> None:
    tools = [tool(f"f{n}", {"properties": {"a": {"type": "string", "maxLength": 200 + n}}}) for n in range(9)]
    error = refused(http, engine, {"tools": tools, "tool_choice": "required"})
    assert error["param"] == "tools"
    assert "fewer different limits" in error["message"]


@pytest.mark.parametrize("schema", ENDLESS.values(), ids=ENDLESS)
def test_no_engine_compiles_a_schema_that_would_take_it_long(
    http: httpx2.Client, engine: EngineStandIn, schema: dict[str, Any]
) -> None:
    for demanded in (
        {"tools": [tool(parameters=schema)], "tool_choice": "required"},
        {"tools": [tool(parameters=schema)], "tool_choice": named("stock")},
        {"tools": [tool(parameters=schema, strict=True)]},
    ):
        assert refused(http, engine, demanded)["param"] == "tools[0].function.parameters"
    asked = {"type": "json_schema", "json_schema": {"name": "dish", "schema": schema}}
    assert refused(http, engine, {"response_format": asked})["param"] == "response_format.json_schema.schema"
    # A model may read it.
    assert http.post(CHAT, json=ASK | {"tools": [tool(parameters=schema)]}).status_code == 200


def test_all_tools_together_are_bounded(http: httpx2.Client, engine: EngineStandIn) -> None:
    large = [tool(f"f{number}", {"description": "x" * 30_000}) for number in range(5)]
    assert refused(http, engine, {"tools": large})["param"] == "tools"
    many = [tool(f"f{number}", {"properties": {f"p{n}": {} for n in range(1900)}}) for number in range(128)]
    error = refused(http, engine, {"tools": many})  # before the schemas are read, which would take seconds
    assert (error["param"], "together" in error["message"]) == ("tools", True)
    wide = {"properties": {f"p{number}": {} for number in range(300)}}
    two = {"tools": [tool(parameters=wide), tool("order", wide)], "tool_choice": "required"}
    assert refused(http, engine, two)["param"] == "tools"
