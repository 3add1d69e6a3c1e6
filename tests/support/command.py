"""The command, run against a service, and what a worker would do to its jobs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import update
from typer.testing import CliRunner, Result

from app.cli.main import app
from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning.models import Event, FineTuningJob

TOQUE = [sys.executable, "-P", "-m", "app.cli.main"]


@dataclass(frozen=True)
class Service:
    """A running API, and the environment that client commands find it with."""

    environment: dict[str, str]
    database: Database

    def run(self, *arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(each) for each in arguments], env=self.environment, input=stdin)

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        command = [*TOQUE, *(str(each) for each in arguments)]
        return subprocess.Popen(command, env=os.environ | self.environment, text=True, **options)

    def work_on(self, job_id: str, *events: Event, **changes: object) -> None:
        """Does to a job what a worker does: lines in its log, and another state."""
        with self.database.writer() as session:
            for event in events:
                event.job_id = job_id
                session.add(event)
            if changes:
                session.execute(update(FineTuningJob).where(FineTuningJob.id == job_id).values(**changes))


def metrics_event(step: int, total_steps: int, loss: float) -> Event:
    return Event(
        level="info",
        type="metrics",
        message=f"Step {step}/{total_steps}: training loss={loss}",
        data={"step": step, "total_steps": total_steps, "train_loss": loss},
    )


def finished(status: str) -> dict[str, object]:
    return {"status": status, "finished_at": time.time()}


def run(settings: Settings, *arguments: str) -> Result:
    environment = {
        "TOQUE_DATA_DIR": str(settings.data_dir),
        "TOQUE_DATABASE_URL": settings.database_url,
        "TOQUE_HEARTBEAT_SECONDS": "10",
    }
    return CliRunner().invoke(app, arguments, env=environment)
