"""Whatever number the gateway lets through, the engine's own types hold, or it refuses it as the caller's."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

pytest.importorskip("vllm")

from app.completions.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    GatewayRequest,
    ResponseRequest,
    parse_request,
)
from app.core.errors import InvalidRequestError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's and torch's own, as they are imported
    import msgspec
    import torch
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest as EngineChat
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest as EngineCompletion
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest as EngineResponses
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import SamplingParams

KINDS: dict[type[GatewayRequest], tuple[Any, dict[str, Any]]] = {
    ChatCompletionRequest: (EngineChat, {"model": "m", "messages": [{"role": "user", "content": "x"}]}),
    CompletionRequest: (EngineCompletion, {"model": "m", "prompt": "x"}),
    ResponseRequest: (EngineResponses, {"model": "m", "input": "x"}),
}
NUMBERS = [
    *(
        sign * (2**bits + off)
        for sign in (1, -1)
        for bits in (0, 15, 31, 32, 63, 64, 70)
        for off in (-1, 0, 1)
    ),
    *(
        0.0,
        -0.0,
        0.5,
        1.0,
        1e-45,
        1e-308,
        5e-324,
        1e38,
        1e39,
        1e308,
        -1e308,
        1e-3,
        0.01,
        2.0,
        100,
        -100,
        1e400,
    ),
]
"""What no or few types hold, and what is just in range."""


def number_fields(kind: type[BaseModel]) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        kinds = json.dumps(TypeAdapter(field.rebuild_annotation()).json_schema())
        if '"integer"' in kinds or '"number"' in kinds:
            yield name


FIELDS = [(kind, name) for kind in KINDS for name in number_fields(kind)]


def sent(kind: type[GatewayRequest], body: dict[str, Any]) -> bytes | None:
    """What the engine gets of a body, or None if the gateway refuses it, naming the field."""
    try:
        request = parse_request(kind, json.dumps(body).encode())
    except InvalidRequestError as refusal:
        assert refusal.body.param or refusal.body.code == "invalid_json", refusal
        return None
    if isinstance(request, ResponseRequest):
        request.resolve([], {}, None)
    return request.for_engine("m", "p")


def held_by_the_engine(kind: Any, body: bytes) -> SamplingParams | None:
    """The parameters that the engine samples with, through all its types; None if it refuses the body."""
    try:
        request = kind.model_validate_json(body)
        if kind is EngineCompletion:
            sampling = request.to_sampling_params(16)
        elif kind is EngineChat:
            sampling = request.to_sampling_params(16, {})
        else:
            sampling = request.to_sampling_params(16)
    except (VLLMValidationError, ValueError):
        return None  # with status 400
    msgspec.msgpack.encode(sampling)  # how it comes to the engine core
    return sampling


def test_the_fields_are_found() -> None:
    names = {(kind.__name__, name) for kind, name in FIELDS}
    assert {("ChatCompletionRequest", "top_k"), ("CompletionRequest", "logit_bias")} <= names
    assert {("ResponseRequest", "seed"), ("CompletionRequest", "prompt")} <= names
    assert len(FIELDS) > 40


@given(
    st.sampled_from(FIELDS),
    st.sampled_from(NUMBERS) | st.integers() | st.floats(allow_nan=False),
)
@example((ChatCompletionRequest, "top_k"), 2**70)
@example((ChatCompletionRequest, "repetition_penalty"), 1e-308)
@example((ChatCompletionRequest, "temperature"), -0.0)
@example((ResponseRequest, "seed"), -(2**63))
@example((ChatCompletionRequest, "max_tokens"), math.inf)
def test_any_number_in_any_field(place: tuple[type[GatewayRequest], str], number: float) -> None:
    kind, name = place
    engine_kind, body = KINDS[kind]
    for value in (number, [number], [[number]], {"1": number}):
        content = sent(kind, body | {name: value})
        sampling = None if content is None else held_by_the_engine(engine_kind, content)
        if sampling is None:
            continue
        # As the engine keeps them for a batch.
        torch.tensor([sampling.top_k], dtype=torch.int32)
        floats = [sampling.temperature, sampling.top_p, sampling.min_p, sampling.repetition_penalty]
        floats += [
            sampling.frequency_penalty,
            sampling.presence_penalty,
            *(sampling.logit_bias or {}).values(),
        ]
        assert torch.tensor(floats, dtype=torch.float32).isfinite().all()
        assert torch.tensor(sampling.repetition_penalty, dtype=torch.float32) > 0
        assert torch.tensor(1 / max(sampling.temperature, 1e-2), dtype=torch.float32).isfinite()
        if sampling.seed is not None:
            torch.Generator().manual_seed(sampling.seed)
        assert 0 <= sampling.min_tokens < 2**31
        assert 0 < (sampling.max_tokens or 1) < 2**31
        assert math.isfinite(sampling.n) and 1 <= sampling.n <= 16
