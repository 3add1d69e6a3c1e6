"""Jobs that a real worker runs, with a trainer that learns nothing, and the trackers' real libraries."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from app.core.settings import Settings
from tests.support.jobs import create, upload
from tests.support.training_files import training_bytes
from tests.support.worker import WorkerProcess, run_worker
from tests.trackers.mlflow_server import run_server

collect_ignore_glob = [] if find_spec("trackio") else ["test_*.py"]
"""Without the libraries, which `make test-trackers` installs, there is nothing to test."""
WORKER = [sys.executable, "-m", "benchmarks.soak.worker"]
Worker = Callable[[], AbstractContextManager[WorkerProcess]]


@pytest.fixture(scope="session")
def mlflow_server() -> Iterator[str]:
    pytest.importorskip("mlflow")
    folder = Path(tempfile.mkdtemp(prefix="toque-mlflow-"))
    with run_server(folder) as url:
        yield url
    shutil.rmtree(folder)


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    settings.tracker, settings.tracker_entities = request.module.TRACKER, ["kitchen"]
    settings.lease_seconds, settings.retry_seconds = 2.0, 0.1
    return settings


@pytest.fixture
def worker(settings: Settings, tmp_path: Path) -> Callable[..., AbstractContextManager[WorkerProcess]]:
    """Starts a worker whose jobs are tracked, with the tracker's own variables."""

    def start(**environment: str) -> AbstractContextManager[WorkerProcess]:
        ours = {"TOQUE_TRACKER": settings.tracker, "TOQUE_MODELS_DIR": str(settings.models_root)}
        path = os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH"))))
        return run_worker(settings, tmp_path, WORKER, PYTHONPATH=path, **ours, **environment)

    return start


def create_job(client: OpenAI, epochs: int = 3, **parameters: Any) -> Any:
    file = upload(client, training_bytes(40))
    method: Any = {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 4}},
    }
    return create(client, training_file=file, method=method, seed=1, **parameters)


def logged(client: OpenAI, job_id: str) -> dict[int, dict[str, float]]:
    """The metrics of each step, as the API has them."""
    events = client.fine_tuning.jobs.list_events(job_id, limit=1000)
    steps = [event.data for event in events if event.type == "metrics" and event.data]
    return {
        step["step"]: {name: value for name, value in step.items() if name not in ("step", "total_steps")}
        for step in steps
    }


def messages(client: OpenAI, job_id: str, level: str = "info") -> list[str]:
    events = client.fine_tuning.jobs.list_events(job_id, limit=1000)
    return [event.message for event in events if event.level == level and event.type == "message"]
