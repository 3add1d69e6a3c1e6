"""Whose turn it is at an engine that scores many prompts."""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("vllm")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's and torch's own, as they are imported
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

    from workers.inference.scheduler import InteractiveFirstQueue, InteractiveFirstScheduler


def test_who_arrives_soon_after_scored_prompts_goes_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = InteractiveFirstQueue()
    monkeypatch.setattr(Scheduler, "add_request", lambda _, request: queue.add_request(request))
    scheduler = InteractiveFirstScheduler.__new__(InteractiveFirstScheduler)  # no model is needed to queue
    for name, arrival, prompt_logprobs, priority in (
        ("batch", 0, None, 1),
        ("scored", 1, 0, 0),
        ("scored too", 2, 5, 0),
        ("chat", 20, None, 0),
        ("late chat", 40, None, 0),
    ):
        sampling = SamplingParams(prompt_logprobs=prompt_logprobs)
        scheduler.add_request(Request(name, [1, 2], sampling, None, arrival_time=arrival, priority=priority))
    order = [queue.pop_request().request_id for _ in range(5)]
    assert order == ["chat", "scored", "scored too", "late chat", "batch"]
