"""Trackers: where a job's metrics can be sent. Each is a module beside this one that opens a `TrackerRun`.

accelerate's trackers are not used: they import torch, and they begin a run anew or stamp metrics with the
time at which they are sent, so that a run that is continued after a crash would have its last steps twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

LABELS: Mapping[str, str] = {"mlflow": "MLflow", "trackio": "trackio", "wandb": "W&B"}
"""What the trackers call themselves."""

Ending = Literal["succeeded", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class RunDetails:
    """What a run is called, and what it shows beside metrics."""

    job_id: str
    """By which a run that was begun before is found again."""
    project: str
    entity: str | None
    name: str
    tags: list[str]
    config: dict[str, Any]
    """The job's model, method and hyperparameters."""
    created_at: float
    folder: Path
    """Where the tracker may keep files."""


class TrackerRun(Protocol):
    """A run that is open. Its methods raise whatever the tracker's library raises."""

    url: str | None
    """Where people look at it; None if the tracker does not say."""
    last_step: int | None
    """The last step that the tracker has, 0 if it has none; None if it does not say."""

    def log(self, step: int, metrics: dict[str, float], at: float) -> None:
        """Send the metrics of a step that was taken at a time in seconds since the epoch."""
        ...

    def close(self, ending: Ending | None) -> None:
        """Send what is left, and close the run; it goes on later if the job has not ended (None)."""
        ...


def open_run(tracker: str, details: RunDetails) -> TrackerRun:
    """Begin the job's run in a tracker, or go on with it if it was begun before.

    Raises:
        ModuleNotFoundError: the tracker's library is not installed.
        Exception: whatever the library raises.
    """
    module = import_module(f"workers.tracking.{tracker}_run")
    begin: Callable[[RunDetails], TrackerRun] = module.begin
    return begin(details)
