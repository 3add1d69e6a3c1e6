"""What an engine refuses is told in our words: a field that was sent, and nothing of vLLM's."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.service import BASE_MODEL

pytestmark = pytest.mark.one_database

CONTEXT = "This model's maximum context length is 2048 tokens."
FORMAT = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
}
PROMPT = {"messages": None, "prompt": "Soup?"}
REFUSALS: list[tuple[str, str | None, dict[str, Any], str | None, str, str]] = [
    # what vLLM says and names, what was sent; the field, the code and words that a caller gets
    (f"{CONTEXT} However, your prompt contains at least 2050 input tokens. (parameter=input_tokens, "
     "value=2050)", "input_tokens", {}, "messages",
     "context_length_exceeded", "at least 2050"),
    (CONTEXT, "input_text", PROMPT, "prompt", "context_length_exceeded", "2048"),
    ("The decoder prompt (length 3000) is longer than the maximum model length of 2048. Make sure that "
     "`max_model_len` is no smaller than the number of text tokens.", None, {}, "messages",
     "context_length_exceeded", "2048 tokens"),
    ("max_tokens=9000 cannot be greater than max_model_len=2048. Please request fewer output tokens.",
     "max_tokens", {"max_tokens": 9000}, "max_tokens", "invalid_value", "2048 tokens"),
    ("Requested sample logprobs of 20, which is greater than max allowed: 5", "logprobs",
     {"logprobs": True, "top_logprobs": 20}, "logprobs", "invalid_value", "5"),
    ("token_id(s) [99] in logit_bias contain out-of-vocab token ids. Vocabulary size: 9", "logit_bias",
     {"logit_bias": {"99": 1}}, "logit_bias", "invalid_value", "out-of-vocab"),
    ("token_id(s) [99] in logit_bias contain out-of-vocab token ids. Vocabulary size: 9", None,
     {"logit_bias": {"99": 1}}, "logit_bias", "invalid_value", "out-of-vocab"),
    ("stream_options must not be set", "stream_options", {}, None, "invalid_value", "stream_options"),
    ("stop cannot contain an empty string.", None, {"stop": ["x"]}, "stop", "invalid_value", "empty"),
    ("min_tokens must be less than or equal to max_tokens=2.", None, {"min_tokens": 3, "max_tokens": 2},
     "min_tokens", "invalid_value", "max_tokens=2"),
    ("The provided JSON schema contains features not supported by xgrammar.", None, FORMAT, "response_format",
     "invalid_json_schema", "held to this schema"),
    ("Failed to transform json schema into a grammar: [12:00:00] /project/cpp/converter.cc:1053: no", None,
     FORMAT, "response_format", "invalid_json_schema", "held to this schema"),
    ("The JSON schema is nested too deeply: objects and arrays may nest at most 16 levels", None, FORMAT,
     "response_format", "invalid_json_schema", "at most 16 levels"),
    ('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', None, {}, None,
     "unsupported_parameter", "does not support tools"),
    ("As of transformers v4.44, default chat template is no longer allowed", None, {}, "messages",
     "invalid_value", "no chat template"),
    ("Conversation roles must alternate user/assistant/user/assistant/...", None, {}, "messages",
     "invalid_value", "must alternate"),
    ("thinking_token_budget is set. Please set --reasoning-parser.", "thinking_token_budget", {}, None,
     "invalid_value", "leave out"),
    ("Set VLLM_MAX_N_SEQUENCES.\nTraceback", "n", {"n": 2}, "n", "invalid_value", "leave out"),
    ("cache_salt must be short", "cache_salt", {}, None, "invalid_value", "cache_salt"),
    ("", None, {}, None, "invalid_value", "leave out"),
]  # fmt: skip


def test_refusals(http: httpx2.Client, engine: EngineStandIn) -> None:
    engine.behaviour = "refuse"
    for said, named, sent, param, code, words in REFUSALS:
        engine.refusal, engine.refused = said, named
        body = {name: value for name, value in (ASK | sent).items() if value is not None}
        route = "chat/completions" if "messages" in body else "completions"
        response = http.post(f"/v1/{route}", json=body)
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, param, code), error
        assert words in error["message"], error
        assert "--" not in error["message"], error
        assert "parameter=" not in error["message"], error
        assert "vllm" not in error["message"].lower(), error


def test_what_no_client_sent_is_not_named(http: httpx2.Client, engine: EngineStandIn) -> None:
    engine.behaviour, engine.refusal, engine.refused = "refuse", "priority must be small", "priority"
    error = http.post("/v1/chat/completions", json=ASK | {"model": BASE_MODEL}).json()["error"]
    assert (error["param"], error["code"]) == (None, "invalid_value")
