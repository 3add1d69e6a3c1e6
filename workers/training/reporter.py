"""Turns an attempt's progress into rows: events, checkpoints, and how the job ended."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from tenacity import (
    before_sleep_log,
    retry,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from app.adapters import service as adapters_service
from app.database import Database, new_id
from app.files import service as files_service
from app.files.storage import LocalStorage
from app.fine_tuning import queue
from app.fine_tuning.models import FineTuningJob
from workers.training.protocol import Checkpoint, Failed, Finished, Metrics, Progress, Started, Step

log = logging.getLogger("toque.worker")
T = TypeVar("T")

RESULT_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


class JobReporter:
    """Writes for one attempt; every write is fenced by its epoch.

    Every method raises `queue.LeaseLostError` once the attempt no longer owns its job. A database
    that is away for less than `patience` seconds only delays a write.
    """

    def __init__(
        self, database: Database, storage: LocalStorage, job: FineTuningJob, patience: float
    ) -> None:
        self.job = job
        self._database = database
        self._storage = storage
        self._epoch = job.lease_epoch
        self._total_steps = 0
        self._steps: list[Metrics] = []
        self._persistently = retry(
            retry=retry_if_exception_type(OperationalError),
            stop=stop_after_delay(patience),
            wait=wait_exponential_jitter(initial=0.2, max=5),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        )

    def report(self, progress: Progress) -> None:
        """Records one message of the trainer."""
        match progress:
            case Started():
                self._started(progress)
            case Step():
                self._step(progress)
            case Checkpoint():
                self._checkpoint(progress)
            case Finished():
                self._finished(progress)
            case Failed():
                self.fail(progress.code, progress.message, progress.param)

    def fail(self, code: str, message: str, param: str | None = None) -> None:
        """Ends the job with a reason."""
        self._write(
            lambda session: queue.fail(
                session, self.job.id, self._epoch, code=code, message=message, param=param
            )
        )

    def release(self) -> None:
        """Gives the job back to the queue."""
        self._write(lambda session: queue.release(session, self.job.id, self._epoch))

    def _started(self, started: Started) -> None:
        self._total_steps = started.total_steps
        self._event(
            f"Training on {started.device}: {started.examples} examples, "
            f"{started.tokens_per_epoch} tokens an epoch, {started.total_steps} steps, "
            f"{started.trainable_parameters:,} trainable parameters"
        )

    def _step(self, step: Step) -> None:
        self._steps.append(step.metrics)
        number = step.metrics.step
        left = (self._total_steps - number) * step.elapsed_seconds / number
        loss = step.metrics.train_loss
        message = f"Step {number}/{self._total_steps}: training loss={loss:.4f}"
        if step.metrics.valid_loss is not None:
            message += f", validation loss={step.metrics.valid_loss:.4f}"
        data = _numbers(step.metrics) | {
            "total_steps": self._total_steps,
            "epoch": step.epoch,
            "learning_rate": step.learning_rate,
            "trained_tokens": step.tokens,
            "elapsed_seconds": round(step.elapsed_seconds, 3),
        }
        self._event(message, data=data, estimated_finish=time.time() + left)

    def _checkpoint(self, checkpoint: Checkpoint) -> None:
        step = checkpoint.metrics.step
        key = self._storage.key(Path(checkpoint.path))
        metrics = _numbers(checkpoint.metrics)

        def write(session: Session) -> None:
            name = adapters_service.publish_checkpoint(
                session, self.job, self._epoch, step=step, storage_key=key, metrics=metrics
            )
            queue.record_event(
                session, self.job.id, self._epoch, f"Checkpoint created at step {step}: {name}"
            )

        self._write(write)

    def _finished(self, finished: Finished) -> None:
        # The files are durable before any row names them; a crash in between leaves files without rows.
        result = self._storage.write(f"files/{new_id('result-')}", _result_csv(self._steps))
        key = self._storage.key(Path(finished.path))

        def write(session: Session) -> None:
            file = files_service.create_result_file(
                session, self.job.project_id, f"{self.job.id}-metrics.csv", result
            )
            adapters_service.publish_model(
                session,
                self.job,
                self._epoch,
                storage_key=key,
                trained_tokens=finished.trained_tokens,
                result_file_id=file.id,
            )

        self._write(write)

    def _event(
        self, message: str, *, data: dict[str, Any] | None = None, estimated_finish: float | None = None
    ) -> None:
        self._write(
            lambda session: queue.record_event(
                session, self.job.id, self._epoch, message, data=data, estimated_finish=estimated_finish
            )
        )

    def _write(self, work: Callable[[Session], None]) -> None:
        """One transaction, tried again while the database is away."""

        def attempt() -> None:
            with self._database.writer() as session:
                work(session)

        self._persistently(attempt)()


def _numbers(metrics: Metrics) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(metrics).items() if value is not None}


def _result_csv(steps: list[Metrics]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(RESULT_COLUMNS)
    for row in steps:
        writer.writerow(
            (
                row.step,
                row.train_loss,
                row.train_mean_token_accuracy,
                row.valid_loss,
                row.valid_mean_token_accuracy,
            )
        )
    return text.getvalue().encode()
