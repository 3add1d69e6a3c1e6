"""What vLLM says when it refuses a request, as errors of ours.

A caller knows neither vLLM nor its flags. So an error names a field that was sent, and vLLM's own words are
only passed on if they are about the request and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from app.core.errors import InvalidRequestError, ToqueError, UnavailableError

MODEL_NOT_LOADED = "model_not_loaded"
_MOST_CHARACTERS = 500
_PROMPTS = ("messages", "prompt", "input")
_PARAMETER = re.compile(r"\s*\(parameter=.*\)\s*$", re.DOTALL)
"""What vLLM adds to some messages: the name that it has for a parameter, and the value."""
_SET_BY_GATEWAY = {"model", "cache_salt", "priority", "stream_options", "store"}
_INTERNAL = re.compile(
    r"--[a-z]|vllm|lora\b|xgrammar|guidance|outlines|max_model_len|skip_tokenizer|max_logprobs|decoder prompt"
    r"|environment variable|startup|transformers|traceback|<class|\b0x[0-9a-f]|\.(?:py|cc|cpp|h)\b"
    r"|(?<![\w/])/\w+/",
    re.IGNORECASE,
)
"""Flags, settings, files and libraries of the engine."""


@dataclass(frozen=True)
class _Kind:
    """A kind of refusal: how vLLM's message tells it, and what a caller is told instead if need be."""

    pattern: re.Pattern[str]
    message: str
    fields: Sequence[str] = ()
    """The fields that it may be about, the likeliest first."""
    code: str = "invalid_value"


_KINDS = (
    _Kind(
        re.compile(r"max\w*_tokens=\d+ cannot be greater than \w+=(?P<limit>\d+)"),
        "More tokens are asked for than this model's maximum context length, which is {limit} tokens.",
        ("max_completion_tokens", "max_tokens", "max_output_tokens"),
    ),
    _Kind(
        re.compile(
            r"maximum context length is (?P<limit>\d+)|than the maximum model length of (?P<length>\d+)"
        ),
        "This model's maximum context length is {limit} tokens. Please reduce the length of the prompt.",
        _PROMPTS,
        "context_length_exceeded",
    ),
    _Kind(
        re.compile(r"grammar|json ?schema|structured output|regex", re.IGNORECASE),
        "Answers cannot be held to this schema: it uses what is not supported.",
        ("response_format", "tools", "text"),
        "invalid_json_schema",
    ),
    _Kind(
        re.compile(r"auto-tool-choice|tool-call-parser|tool parser", re.IGNORECASE),
        "This model's base does not support tools.",
        ("tools", "tool_choice"),
        "unsupported_parameter",
    ),
    _Kind(
        re.compile(r"chat template is no longer allowed|chat template", re.IGNORECASE),
        "This model's base has no chat template that can show these messages; `/v1/completions` needs none.",
        _PROMPTS,
    ),
    _Kind(
        re.compile(r"logprobs", re.IGNORECASE),
        "Too many log-probabilities are asked for.",
        ("top_logprobs", "logprobs"),
    ),
    _Kind(re.compile(r"prompt cannot be empty"), "The prompt is empty.", _PROMPTS),
    _Kind(re.compile(r"Token id -?\d+ is out of vocabulary"), "The prompt has unknown tokens.", _PROMPTS),
    _Kind(re.compile(r"in logit_bias"), "The 'logit_bias' has unknown tokens.", ("logit_bias",)),
    _Kind(re.compile(r"roles? must|conversation", re.IGNORECASE), "These messages do not fit.", _PROMPTS),
)
_UNKNOWN = _Kind(
    re.compile(""),
    "The engine cannot answer this request as it is; leave out parameters that it does not need.",
)


def translate_refusal(status: int, content: bytes, request: bytes) -> ToqueError:
    """Return the error of ours for an answer of vLLM that is none.

    Args:
        status: the answer's HTTP status, which is not 200.
        content: the answer's body.
        request: the body of the request, as it was sent to the engine.
    """
    message, param = _read(content)
    if status == 404 or "was found but could not be loaded" in message:
        return UnavailableError("The engine cannot load this model now.", code=MODEL_NOT_LOADED)
    if status in (429, 503):
        return UnavailableError("The engine takes no more requests now.", code="engine_unavailable")
    if status in (401, 403) or (status >= 500 and status != 501):
        return UnavailableError("The engine failed on this request.", code="engine_error")
    kind = next((kind for kind in _KINDS if kind.pattern.search(message)), _UNKNOWN)
    sent = orjson.loads(request).keys() - _SET_BY_GATEWAY
    return InvalidRequestError(
        _words(kind, message), code=kind.code, param=_field(kind, message, param, sent)
    )


def _read(content: bytes) -> tuple[str, str | None]:
    """Return the message and the parameter that vLLM names."""
    try:
        error: Any = orjson.loads(content)
        error = error.get("error", error)
        message, param = error.get("message"), error.get("param")
    except (orjson.JSONDecodeError, AttributeError):
        return "", None
    return _PARAMETER.sub("", str(message or "")), param if isinstance(param, str) else None


def _words(kind: _Kind, message: str) -> str:
    """Return vLLM's first line if a caller can make sense of it, or our own words for this kind."""
    first = message.strip().partition("\n")[0][:_MOST_CHARACTERS]
    if first and not _INTERNAL.search(first):
        return first
    found = kind.pattern.search(message)
    limits = [number for number in (found.groupdict() if found else {}).values() if number]
    return kind.message.format(limit=limits[0] if limits else "")


def _field(kind: _Kind, message: str, param: str | None, sent: Collection[str]) -> str | None:
    """Return the field of the request that an error is about, if there is one that was sent."""
    named = [re.split(r"[.\[]", param)[0]] if param else []
    first_word = re.match(r"`?(\w+)", message)
    candidates = [*named, *([first_word[1]] if first_word else []), *kind.fields]
    return next((field for field in candidates if field in sent), None)
