"""A fleet of real trainers and a real vLLM, of which nodes are killed."""

from __future__ import annotations

import sys
import time
from typing import Any

import openai
import torch

from app.models.adapters.models import Adapter
from tests.cluster.deployment import Deployment, alive
from tests.cluster.work import seconds, succeed
from tests.support.service import BASE_MODEL
from tests.support.training_files import training_bytes
from tests.support.waiting import wait_until
from tests.support.worker import weights

FLEET = [sys.executable, "-m", "app.cli.main", "fleet"]


def create_job(deployment: Deployment, suffix: str) -> str:
    """A job of 18 steps, whose weights depend on nothing but its file and seed."""
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4}}}
    with deployment.client() as client:
        file = client.files.create(file=("train.jsonl", training_bytes(24)), purpose="fine-tune")
        return client.fine_tuning.jobs.create(
            model=BASE_MODEL, training_file=file.id, method=method, seed=7, suffix=suffix
        ).id


def adapter(deployment: Deployment, job: str) -> Adapter:
    with deployment.database.reader() as session:
        return session.get_one(Adapter, deployment.job(job).fine_tuned_model)


def answered_tokens(deployment: Deployment, model: str) -> int:
    """How long its answer is; 0 as long as there is no engine."""
    with deployment.client() as client:
        try:
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "Soup?"}], max_tokens=8, timeout=120
            )
        except (openai.InternalServerError, openai.APIConnectionError):
            return 0
        return answer.usage.completion_tokens if answer.usage else 0


def test_real_jobs_and_a_real_engine_survive_their_nodes(deployment: Deployment) -> None:
    undisturbed, disturbed = create_job(deployment, "undisturbed"), create_job(deployment, "disturbed")
    wait_until(lambda: deployment.job(disturbed).recorded_step >= 5, "it trains", seconds=seconds(120))
    worker = deployment.process_of(disturbed)
    node = worker.environ()["FLEET_NODE"]
    assert node != deployment.process_of(undisturbed).environ()["FLEET_NODE"]
    bereaved = deployment.cluster.processes_of(node)
    assert worker in bereaved
    killed_at = time.monotonic()
    deployment.cluster.kill(node)
    wait_until(lambda: deployment.job(disturbed).lease_epoch > 1, "another goes on", seconds=seconds(60))
    waited = time.monotonic() - killed_at
    print(f"the job of a killed node is elsewhere after {waited:.1f} s")
    assert waited <= seconds(deployment.settings.lease_seconds + 15)
    wait_until(lambda: not alive(bereaved), "what was below the node ends")
    assert deployment.process_of(disturbed).environ()["FLEET_NODE"] != node
    succeed(deployment, [undisturbed, disturbed], seconds(240))
    first, second = (
        weights(deployment.database, deployment.settings, adapter(deployment, job).name)
        for job in (undisturbed, disturbed)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    # Nobody could compare the models with an engine's answers yet: the fleet does it when there is an engine.
    model = adapter(deployment, disturbed).name
    wait_until(lambda: answered_tokens(deployment, model) > 0, "vLLM answers", seconds=seconds(180))
    wait_until(lambda: adapter(deployment, disturbed).parity, "it is compared", seconds=seconds(60))

    node = next(each for each in deployment.processes() if "vllm" in " ".join(each.cmdline())).environ()[
        "FLEET_NODE"
    ]
    bereaved = deployment.cluster.processes_of(node)
    deployment.cluster.kill(node)
    wait_until(lambda: not alive(bereaved), "vLLM ends with its node")
    wait_until(lambda: answered_tokens(deployment, model) > 0, "another vLLM answers", seconds=seconds(180))
    deployment.become_idle()
    wait_until(lambda: not deployment.processes(), "no process is left", seconds=seconds(60))
