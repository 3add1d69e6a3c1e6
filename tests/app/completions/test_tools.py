"""Tools in requests: which bases take them, and what is refused before an engine sees it."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.support.engine_stand_in import ASK, EngineStandIn

pytestmark = pytest.mark.one_database

CHAT = "/v1/chat/completions"
STOCK: dict[str, Any] = {"type": "function", "function": {"name": "stock", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"tool_choice": "auto"},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "stock"}}},
    ],
)
@pytest.mark.parametrize(
    ("model", "remedy"), [("no-parser", "--tool-parser"), ("no-place-for-tools", "--chat-template")]
)
def test_a_base_without_tools_says_what_to_set(
    http: httpx2.Client, engine: EngineStandIn, model: str, remedy: str, choice: dict[str, Any]
) -> None:
    response = http.post(CHAT, json=ASK | {"model": model, "tools": [STOCK]} | choice)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "tools", "unsupported_parameter")
    assert f"`toque models add … {remedy}" in error["message"]
    assert engine.bodies == []
