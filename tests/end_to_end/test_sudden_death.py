"""What is left when vLLM or the engine is killed: the last tests of the deployment, whose engine they end."""

from __future__ import annotations

import urllib.request
from typing import Any

import openai
import psutil
import pytest
from openai import OpenAI

from tests.support.deployment import Deployment, Trained, ask, descendants
from tests.support.waiting import wait_until


def test_an_engine_that_is_killed_comes_back_with_every_adapter(
    deployment: Deployment, client: OpenAI, trained: Trained, questions: list[Any]
) -> None:
    model = trained.job.fine_tuned_model
    before = ask(client, model, questions[0])
    vllm = next(
        process
        for process in descendants(deployment)
        if "vllm.entrypoints.openai.api_server" in process.cmdline()
    )
    others = vllm.children(recursive=True)
    vllm.kill()
    _, alive = psutil.wait_procs([vllm, *others], timeout=60)
    assert alive == []

    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, model, questions[0])
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"]
    assert client.fine_tuning.jobs.retrieve(trained.job.id).status == "succeeded"

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{deployment.url}/health/ready", timeout=5):
                return True
        except OSError as error:
            getattr(error, "close", lambda: None)()
            return False

    wait_until(ready, "the engine is back", seconds=180)
    assert ask(client, model, questions[0]) == before


def test_a_killed_engine_leaves_nobody_behind(deployment: Deployment) -> None:
    engine = next(
        process for process in descendants(deployment) if "workers.inference.engine" in process.cmdline()
    )
    family = engine.children(recursive=True)
    assert len(family) >= 2
    engine.kill()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
