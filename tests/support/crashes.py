"""Workers that kill themselves at a point of `workers.crash_points`, until a job has outlived them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from openai import OpenAI

from tests.support.waiting import wait_until
from tests.support.worker import WorkerProcess

CRASH_POINTS = [
    "worker.claim_uncommitted",
    "worker.claimed",
    "trainer.base_loaded",
    "trainer.step",
    "reporter.step_recorded",
    "checkpoint.before_adapter_model.safetensors",
    "checkpoint.before_adapter_config.json",
    "checkpoint.before_training_state.pt",
    "checkpoint.before_manifest",
    "checkpoint.before_rename",
    "checkpoint.after_rename",
    "trainer.checkpoint_saved",
    "reporter.before_checkpoint_row",
    "reporter.after_checkpoint_row",
    "trainer.finished",
    "reporter.before_result_file",
    "reporter.after_result_file",
    "reporter.result_row",
    "reporter.model_row",
    "reporter.published",
]
"""Those of a job on any storage."""


def train_through_crash(
    client: OpenAI,
    job_id: str,
    start: Callable[..., AbstractContextManager[WorkerProcess]],
    point: str,
    marker: Path,
):
    """The job when it has succeeded; `start` starts a worker with the environment that it is given.

    The first one to come to the point makes the marker and dies there, or its trainer does.
    """

    def status() -> str:
        return client.fine_tuning.jobs.retrieve(job_id).status

    while status() != "succeeded":  # its supervisor starts it again
        with start(TOQUE_CRASH_AT=f"{point}:{marker}") as worker:
            wait_until(
                lambda worker=worker: worker.poll() is not None or status() in ("succeeded", "failed"),
                "the job or its worker ends",
                seconds=180,
            )
            assert worker.poll() in (None, -signal.SIGKILL)
        assert status() != "failed", client.fine_tuning.jobs.retrieve(job_id).error
    assert marker.exists(), "the point was never reached"
    return client.fine_tuning.jobs.retrieve(job_id)
