"""Runs in MLflow: https://mlflow.org/docs/latest/ml/tracking/. Its own variables say where (MLFLOW_*)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from yarl import URL

from workers.tracking.tracker import Ending, RunDetails

_JOB_TAG = "toque.job_id"
_LONGEST_PARAM = 6000
"""Characters of a parameter's value that MLflow keeps."""
_STATUSES: dict[Ending, str] = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


class MlflowRun:
    """A run in MLflow.

    A metric is one row for its key, step, value and time, so what is sent again after a crash is kept once:
    the time is that of the step.
    """

    def __init__(self, client: Any, run: Any, url: str | None) -> None:
        self._client = client
        self._id: str = run.info.run_id
        self.url = url
        self.last_step: int | None = self._read_last_step(run)

    def log(self, step: int, metrics: dict[str, float], at: float) -> None:
        """Send the metrics of a step."""
        entities = import_module("mlflow.entities")
        rows = [
            entities.Metric(name, value, timestamp=round(at * 1000), step=step)
            for name, value in metrics.items()
        ]
        self._client.log_batch(self._id, metrics=rows)

    def close(self, ending: Ending | None) -> None:
        """Set the run's status, once the job has ended."""
        if ending is not None:
            self._client.set_terminated(self._id, status=_STATUSES[ending])

    def _read_last_step(self, run: Any) -> int:
        if not run.data.metrics:
            return 0
        name = min(run.data.metrics)
        return max(metric.step for metric in self._client.get_metric_history(self._id, name))


def begin(details: RunDetails) -> MlflowRun:
    """Begin the job's run, or go on with it if there is one."""
    mlflow: Any = import_module("mlflow")
    experiment = mlflow.set_experiment(details.project).experiment_id
    client = mlflow.MlflowClient()
    found = client.search_runs(
        [experiment], filter_string=f"tags.`{_JOB_TAG}` = '{details.job_id}'", max_results=1
    )
    if found:
        run = found[0]
        client.update_run(run.info.run_id, status="RUNNING")
    else:
        tags = {_JOB_TAG: details.job_id} | {f"toque.{tag}": "true" for tag in details.tags}
        run = client.create_run(
            experiment, start_time=round(details.created_at * 1000), tags=tags, run_name=details.name
        )
        param = import_module("mlflow.entities").Param
        params = [param(name, str(value)[:_LONGEST_PARAM]) for name, value in details.config.items()]
        client.log_batch(run.info.run_id, params=params)
    return MlflowRun(client, run, _url(mlflow.get_tracking_uri(), experiment, run.info.run_id))


def _url(tracking_uri: str, experiment: str, run_id: str) -> str | None:
    server = URL(tracking_uri)
    if server.scheme not in ("http", "https"):
        return None
    address = str(server.with_user(None).with_password(None)).rstrip("/")
    return f"{address}/#/experiments/{experiment}/runs/{run_id}"
