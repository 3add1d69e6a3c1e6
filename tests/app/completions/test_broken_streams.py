"""A stream whose engine dies ends with our error, on every route, and is never taken for a whole answer."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.service import BASE_MODEL

pytestmark = pytest.mark.one_database

PROMPT = {"model": BASE_MODEL, "prompt": "Soup?"}
INPUT = {"model": BASE_MODEL, "input": "Soup?"}
ROUTES = [("/v1/chat/completions", ASK), ("/v1/completions", PROMPT), ("/v1/responses", INPUT)]


def events(http: httpx2.Client, path: str, body: dict[str, Any]) -> list[str]:
    response = http.post(path, json=body | {"stream": True})
    assert response.status_code == 200, response.text
    assert "stack trace" not in response.text
    return [part for part in response.text.split("\n\n") if part]


@pytest.mark.parametrize("behaviour", ["die", "break"])
@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_an_engine_that_dies(
    http: httpx2.Client, engine: EngineStandIn, path: str, body: dict[str, Any], behaviour: str
) -> None:
    engine.behaviour = behaviour
    *before, last = events(http, path, body)
    assert before
    data = json.loads(last.partition("data: ")[2])
    if path == "/v1/responses":
        assert data["type"] == "response.failed"
        said = data["response"]["error"]
        assert said == {"code": "server_error", "message": "The engine broke off its answer."}
        error = json.loads(before[-1].partition("data: ")[2])
        assert (error["type"], error["code"]) == ("error", "engine_unavailable")
    else:
        assert data == {
            "error": {
                "message": "The engine broke off its answer.",
                "type": "server_error",
                "param": None,
                "code": "engine_unavailable",
            }
        }
    assert not any("[DONE]" in event for event in before)


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_an_engine_that_dies_and_keeps_the_connection_open(
    http: httpx2.Client, engine: EngineStandIn, path: str, body: dict[str, Any]
) -> None:
    engine.behaviour = "die slowly"
    assert "The engine broke off its answer." in events(http, path, body)[-1]


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_an_engine_that_refuses_once_the_stream_has_begun(
    http: httpx2.Client, engine: EngineStandIn, path: str, body: dict[str, Any]
) -> None:
    """vLLM validates what is particular to sampling only then. No client need repeat it."""
    engine.behaviour = "refuse in the stream"
    engine.refusal, engine.refused = "temperature must be non-negative, got -1.", "temperature"
    response = http.post(path, json=body | {"stream": True, "temperature": 0})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "temperature"
    assert len(engine.bodies) == 1
