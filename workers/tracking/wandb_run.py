"""Runs in Weights & Biases: https://docs.wandb.ai/ref/python/. Its own variables say where (WANDB_*)."""

from __future__ import annotations

import shutil
from importlib import import_module
from typing import Any

from workers.tracking.tracker import Ending, RunDetails


class WandbRun:
    """A run in W&B. What it is sent is stored and uploaded by a process that W&B starts."""

    def __init__(self, run: Any, details: RunDetails) -> None:
        self._run = run
        self._details = details
        self.url: str | None = run.url
        # Offline it does not know what it has.
        self.last_step: int | None = None if run.offline else max(run.starting_step - 1, 0)

    def log(self, step: int, metrics: dict[str, float], at: float) -> None:
        """Send the metrics of a step; W&B keeps no step that is before its last one."""
        self._run.log(metrics | {"_timestamp": at}, step=step)

    def close(self, ending: Ending | None) -> None:
        """Upload what is left, and delete what W&B has kept here of a run that has ended."""
        self._run.finish(exit_code=0 if ending in ("succeeded", None) else 1)
        if ending is not None:
            for folder in (self._details.folder / "wandb").glob(f"run-*-{self._details.job_id}"):
                shutil.rmtree(folder, ignore_errors=True)  # offline, it begins with `offline-run-`


def begin(details: RunDetails) -> WandbRun:
    """Begin the job's run, or go on with it if there is one."""
    wandb: Any = import_module("wandb")
    details.folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=details.project,
        entity=details.entity,
        name=details.name,
        id=details.job_id,
        tags=details.tags,
        config=details.config,
        dir=details.folder,
        resume="allow",
        reinit="create_new",
        # Nothing but what it is told: no code, no console, no figures of this machine.
        settings=wandb.Settings(
            console="off",
            silent=True,
            save_code=False,
            disable_git=True,
            x_disable_stats=True,
            x_disable_meta=True,
        ),
    )
    return WandbRun(run, details)
