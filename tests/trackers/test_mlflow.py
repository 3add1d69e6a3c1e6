"""What a real MLflow server is sent, read back with MLflow's own client."""

from __future__ import annotations

from typing import Any

import psutil
import pytest
from openai import OpenAI

from app.core.database import Database
from app.fine_tuning.models import TrackedRun
from tests.support.free_port import free_port
from tests.support.waiting import wait_until
from tests.support.worker import ended, steps_of
from tests.trackers.conftest import create_job, logged, messages

pytestmark = pytest.mark.one_database
mlflow: Any = pytest.importorskip("mlflow")
TRACKER = "mlflow"


def read_steps(server: str, job_id: str) -> dict[int, dict[str, float]]:
    """The metrics of each step; a metric that a step has twice fails."""
    client = mlflow.MlflowClient(server)
    run = find_run(server, job_id)
    steps: dict[int, dict[str, float]] = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            assert name not in steps.setdefault(metric.step, {}), f"{name} twice at step {metric.step}"
            steps[metric.step][name] = metric.value
    return steps


def find_run(server: str, job_id: str) -> Any:
    client = mlflow.MlflowClient(server)
    experiment = client.get_experiment_by_name("toque")
    [run] = client.search_runs([experiment.experiment_id], f"tags.`toque.job_id` = '{job_id}'")
    return run


def sent_to_the_end(database: Database, job_id: str) -> None:
    def look() -> bool:
        with database.reader() as session:
            return session.get_one(TrackedRun, job_id).ended_at is not None

    wait_until(look, "all is sent")


def test_a_run_has_what_the_job_has(
    client: OpenAI, database: Database, worker: Any, mlflow_server: str
) -> None:
    job = create_job(client)
    with worker(MLFLOW_TRACKING_URI=mlflow_server):
        assert ended(client, job.id).status == "succeeded"
        sent_to_the_end(database, job.id)
    expected = logged(client, job.id)
    assert len(expected) == 30
    assert read_steps(mlflow_server, job.id) == expected
    run = find_run(mlflow_server, job.id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", job.id)
    assert (run.data.params["model"], run.data.params["n_epochs"]) == (job.model, "3")
    url = f"{mlflow_server}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert f"The job's metrics are sent to MLflow: {url}" in messages(client, job.id)


def test_no_step_is_there_twice_after_kill_9(
    client: OpenAI, database: Database, worker: Any, mlflow_server: str
) -> None:
    job = create_job(client, epochs=6)
    with worker(MLFLOW_TRACKING_URI=mlflow_server) as process:
        wait_until(lambda: steps_of(client, job.id) >= 8, "it trains")
        tracking = next(
            child for child in psutil.Process(process.pid).children() if "workers.tracking" in child.cmdline()
        )
        wait_until(lambda: sent_step(database, job.id) >= 4, "some steps are sent")
        process.kill()
        process.wait()
        wait_until(lambda: not tracking.is_running(), "its child dies with it")
    with worker(MLFLOW_TRACKING_URI=mlflow_server):
        assert ended(client, job.id).status == "succeeded"
        sent_to_the_end(database, job.id)
    expected = logged(client, job.id)
    assert sorted(expected) == list(range(1, 61))
    assert read_steps(mlflow_server, job.id) == expected


def sent_step(database: Database, job_id: str) -> int:
    with database.reader() as session:
        return session.get_one(TrackedRun, job_id).sent_step


def test_a_server_that_is_away_costs_the_job_nothing(client: OpenAI, worker: Any) -> None:
    job = create_job(client)
    nobody = f"http://user:secret@127.0.0.1:{free_port()}"
    with worker(MLFLOW_TRACKING_URI=nobody):
        assert ended(client, job.id).status == "succeeded"
        warnings = wait_until(lambda: unsent(client, job.id), "it is noted")
    assert len(warnings) == 1
    assert "secret" not in str(messages(client, job.id, "warn"))
    assert len(logged(client, job.id)) == 30


def unsent(client: OpenAI, job_id: str) -> list[str]:
    return [text for text in messages(client, job_id, "warn") if "cannot be sent to MLflow now" in text]
