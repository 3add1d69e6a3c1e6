"""Runs in trackio: https://huggingface.co/docs/trackio. Its own variables say where (TRACKIO_*)."""

from __future__ import annotations

import itertools
from importlib import import_module
from typing import Any

from workers.tracking.tracker import Ending, RunDetails


class StepsLostError(Exception):
    """trackio has not kept some of the steps that it was sent."""


class TrackioRun:
    """A run in trackio, which keeps its runs in a folder, a server of its own or a Space.

    What is sent to it waits in memory for its next batch. A batch that cannot be written to its folder (if a
    file is locked for too long, say) is dropped with a warning, so `close` looks for what is missing.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        self._kept = _kept_steps(run)
        self._sent: set[int] = set()
        self.url: str | None = None
        # What was logged just before a process died may not have been kept.
        self.last_step: int | None = next(step for step in itertools.count() if step + 1 not in self._kept)

    def log(self, step: int, metrics: dict[str, float], at: float) -> None:  # noqa: ARG002 - it has no times
        """Send the metrics of a step, unless trackio has them."""
        if step not in self._kept:
            self._sent.add(step)
            self._run.log(metrics, step=step)

    def close(self, ending: Ending | None) -> None:
        """Send what is left.

        Raises:
            StepsLostError: the job has ended, and steps are missing; a run that is opened again gets them.
        """
        self._run.finish()
        if ending is not None and self._run._is_local and (lost := self._sent - _kept_steps(self._run)):
            raise StepsLostError(f"trackio has lost steps {sorted(lost)}")


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


def _kept_steps(run: Any) -> set[int]:
    """The steps that trackio has; of a run on a server it says the last one only."""
    if not run._is_local:
        return set(range(1, run._next_step))
    storage: Any = import_module("trackio.sqlite_storage").SQLiteStorage
    return {log["step"] for log in storage.get_logs(run.project, run.name, run_id=run.id)}
