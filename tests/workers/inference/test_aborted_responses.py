"""What an engine says of a response that it aborted."""

from __future__ import annotations

import asyncio
import warnings
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("vllm")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's and torch's own, as they are imported
    from vllm.entrypoints.openai.responses.protocol import ResponsesResponse
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    from workers.inference import requests


@pytest.mark.parametrize(("finish_reason", "status"), [("abort", "cancelled"), ("stop", "completed")])
def test_it_says_that_it_was_cancelled(
    monkeypatch: pytest.MonkeyPatch, finish_reason: str, status: str
) -> None:
    async def respond(*_: object) -> ResponsesResponse:
        return ResponsesResponse.model_construct(status="completed")

    monkeypatch.setattr(OpenAIServingResponses, "responses_full_generator", respond)
    requests._tell_aborted_responses()  # pyright: ignore[reportPrivateUsage]
    context = SimpleNamespace(
        last_output=SimpleNamespace(outputs=[SimpleNamespace(finish_reason=finish_reason)])
    )
    serving = cast(Any, OpenAIServingResponses)
    response = asyncio.run(serving.responses_full_generator(None, None, None, None, context, "model"))
    assert response.status == status
