"""A worker that trains nothing: what it says about a job goes the way that a worker's words go."""

from __future__ import annotations

import math
import random
import time
from typing import Any

from app.core.database import Database
from app.core.lease import Lease
from app.files.models import File
from app.fine_tuning import publication, queue
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import FineTuningJob
from tests.support.service import BASE_MODEL


class StandInWorker:
    """Holds one job, the next in the queue."""

    def __init__(self, database: Database) -> None:
        self.database = database
        with database.writer() as session:
            job = claim_next(session, "worker_stand_in", [BASE_MODEL], 3600.0)
        assert job is not None, "no job waits"
        self.job: FineTuningJob = job
        self.lease = Lease(job.id, job.lease_epoch)

    def expect(self, *, seconds: float) -> None:
        """Say how long the job may take, from its start, as it is known before the first step."""
        assert self.job.started_at is not None
        with self.database.writer() as session:
            queue.record_estimate(session, self.lease, estimated_finish=self.job.started_at + seconds)
            queue.record_event(session, self.lease, "Training")

    def step(self, number: int, total: int, **metrics: float) -> None:
        """Take one step."""
        data = self.data(number, total, **metrics)
        message = f"Step {number}/{total}: training loss={data['train_loss']:.4f}"
        with self.database.writer() as session:
            queue.record_step(
                session, self.lease, number, message, data=data, estimated_finish=time.time() + total - number
            )

    def data(self, number: int, total: int, **metrics: float) -> dict[str, Any]:
        """What a step's row says, as the worker's reporter writes it."""
        rate = 5e-4 * min(number / max(1, total * 0.05), (total - number) / max(1, total * 0.95) + 1e-3)
        return {
            "step": number,
            "train_loss": 1.0,
            **metrics,
            "total_steps": total,
            "epoch": 1,
            "learning_rate": rate,
            "trained_tokens": number * 700,
            "elapsed_seconds": round(number * 2.5, 3),
        }

    def learn(self, last: int, total: int, *, first: int = 1, every: int = 10, turn: float = 0.6) -> None:
        """Take steps whose training loss falls, and whose validation loss turns at a part of them."""
        random_ = random.Random(last)
        for number in range(first, last + 1):
            part = number / total
            metrics = {
                "train_loss": 0.35 + 2 * math.exp(-4 * part) + random_.gauss(0, 0.06),
                "train_mean_token_accuracy": 0.92 - 0.5 * math.exp(-4 * part) + random_.gauss(0, 0.02),
            }
            if number % every == 0:
                valid = 0.7 + 1.4 * math.exp(-6 * part) + 0.9 * max(0.0, part - turn)
                if number % (3 * every) == 0:
                    metrics["full_valid_loss"] = valid - 0.03
                metrics |= {"valid_loss": valid, "valid_mean_token_accuracy": 0.8 - 0.3 * math.exp(-4 * part)}
            self.step(number, total, **metrics)

    def checkpoint(self, step: int, **metrics: float) -> str:
        """Save a checkpoint; returns its name."""
        with self.database.writer() as session:
            name = publication.publish_checkpoint(
                session,
                self.job,
                self.lease,
                step=step,
                storage_key=f"jobs/{self.job.id}/{step}",
                size=1000,
                metrics={"step": step, "train_loss": 0.5} | metrics,
            )
            queue.record_event(session, self.lease, f"Checkpoint created at step {step}: {name}")
        return name

    def fail(self, code: str, message: str, param: str | None = None) -> None:
        """End the job as failed."""
        with self.database.writer() as session:
            queue.fail(session, self.lease, code=code, message=message, param=param)

    def succeed(self) -> str:
        """End the job as succeeded; returns its model's name."""
        with self.database.writer() as session:
            file = File(
                project_id=self.job.project_id,
                filename="metrics.csv",
                purpose="fine-tune-results",
                bytes=1,
                sha256="0" * 64,
                storage_key="none",
            )
            session.add(file)
            session.flush()
            return publication.publish_model(
                session,
                self.job,
                self.lease,
                storage_key=f"jobs/{self.job.id}/final",
                size=1000,
                trained_tokens=1234,
                result_file_id=file.id,
            )
