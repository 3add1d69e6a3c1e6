"""One trace from the caller to vLLM's own span, and one from a job's creation to its last step."""

from __future__ import annotations

import pytest
from openai import OpenAI

from tests.support.deployment import Trained
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until

pytest.importorskip("vllm")
TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_from_the_caller_to_the_engine(client: OpenAI, receiver: OtlpReceiver) -> None:
    client.chat.completions.create(
        model=BASE_MODEL,
        messages=[{"role": "user", "content": "Soup?"}],
        max_tokens=3,
        extra_headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
    )
    [gateway] = receiver.wait_for("POST /v1/chat/completions", TRACE)
    [engine] = receiver.wait_for("llm_request", TRACE)
    assert (gateway.service, engine.service) == ("toque-api", "toque-engine")
    assert (gateway.parent_id, engine.parent_id) == ("b7ad6b7169203331", gateway.span_id)
    assert engine.attributes["gen_ai.usage.completion_tokens"] == 3


def test_from_a_job_to_its_steps(trained: Trained, receiver: OtlpReceiver) -> None:
    def of_job() -> list[str]:
        spans = receiver.find("train")
        return [each.trace_id for each in spans if each.attributes["toque.job_id"] == trained.job.id]

    [trace_id] = wait_until(of_job, "the attempt's span")
    assert receiver.find("POST /v1/fine_tuning/jobs", trace_id)
    steps = [each.attributes["toque.step"] for each in receiver.find("step", trace_id)]
    assert steps == list(range(1, len(steps) + 1)) != []
