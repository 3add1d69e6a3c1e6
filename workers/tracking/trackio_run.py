"""Runs in trackio: https://huggingface.co/docs/trackio. Its own variables say where (TRACKIO_*)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from workers.tracking.tracker import Ending, RunDetails


class TrackioRun:
    """A run in trackio, which keeps its runs in a folder, a server of its own or a Space."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self.url: str | None = None
        # What was logged just before a process died may not have been kept.
        self.last_step: int | None = max(run._next_step - 1, 0)

    def log(self, step: int, metrics: dict[str, float], at: float) -> None:  # noqa: ARG002 - it has no times
        """Send the metrics of a step."""
        self._run.log(metrics, step=step)

    def close(self, ending: Ending | None) -> None:  # noqa: ARG002 - it has no statuses
        """Send what is left."""
        self._run.finish()


def begin(details: RunDetails) -> TrackioRun:
    """Begin the job's run, or go on with it if there is one; trackio knows runs by their names."""
    trackio: Any = import_module("trackio")
    run = trackio.init(
        project=details.project,
        name=details.name,
        config=details.config,
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return TrackioRun(run)
