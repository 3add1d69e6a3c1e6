"""Records the progress of an attempt: events, checkpoints, and how the job ended."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.database import Database, new_id
from app.core.lease import Lease, database_retrying
from app.core.settings import Settings
from app.files import service as files_service
from app.files.models import File
from app.fine_tuning import publication, queue
from app.fine_tuning.methods.metrics import RESULT_COLUMNS, Metrics
from app.fine_tuning.models import FineTuningJob, TrainingSpeed
from app.fine_tuning.preflight import estimates
from app.models.adapters import service as adapters_service
from app.models.adapters.models import Adapter
from app.models.token_mixing import Layout
from app.storage.base import Storage, StoredFile
from workers.crash_points import reach
from workers.device import detect
from workers.training.attempt_files import AttemptFiles
from workers.training.parity import NoAnswerError, Parity, ParityError, compare, find_engine
from workers.training.protocol import (
    Checkpoint,
    Failed,
    Finished,
    Noted,
    Progress,
    Saved,
    Started,
    Step,
    Stopped,
    Warned,
    Working,
)
from workers.training.verification import keep_samples

_LAYOUTS: dict[Layout, str] = {
    "packed": "Examples are packed into rows without padding",
    "padded": "Each example is computed in a row of its own, padded to the longest of its micro-batch",
}

_RECOMPUTED = "Activations are computed again in the backward pass: all of them would not fit into memory"

log = logging.getLogger("toque.worker")


class JobReporter:
    """Writes for one attempt; every write is fenced by its lease.

    Every method raises `LeaseLostError` once the attempt has lost its lease. A database that is away for a
    while (`TOQUE_DATABASE_PATIENCE_SECONDS`) only delays a write.
    """

    def __init__(
        self,
        database: Database,
        storage: Storage,
        files: AttemptFiles,
        job: FineTuningJob,
        lease: Lease,
        settings: Settings,
    ) -> None:
        self.job = job
        self._database = database
        self._storage = storage
        self._files = files
        self._lease = lease
        self._settings = settings
        self._total_steps = 0
        self._began, self._started_at = time.monotonic(), time.monotonic()
        self._run: Started | None = None
        self.recorded_step = job.recorded_step
        """The last step that the job's log has the metrics of."""
        self._has_pruned = False
        """Whether the checkpoints of earlier attempts are removed."""
        self._retrying = database_retrying(settings.database_patience_seconds)

    def report(self, progress: Progress) -> None:
        """Record one message of the trainer."""
        match progress:
            case Started():
                self._started(progress)
            case Step():
                self._step(progress)
            case Working():
                pass
            case Saved():
                self._saved(progress)
            case Checkpoint():
                self._checkpoint(progress)
            case Finished():
                self._finished(progress)
            case Noted():
                self.note(progress.message)
            case Warned():
                self.warn(progress.message)
            case Failed(code="storage_full"):
                self.pause_for_room(progress.message)
            case Failed(code="internal_error" | "storage_unusable"):
                self.retry(progress.message, code=progress.code)
            case Failed():
                self.fail(progress.code, progress.message, progress.param)
            case Stopped():
                self.release()

    def note(self, message: str) -> None:
        """Add a line to the job's log."""
        self._event(message)

    def fail(self, code: str, message: str, param: str | None = None) -> None:
        """End the job as failed, with a reason."""
        self._write(lambda session: queue.fail(session, self._lease, code=code, message=message, param=param))

    def release(self) -> None:
        """Give the job back to the queue."""
        self._write(lambda session: queue.release(session, self._lease))

    def retry(self, reason: str, *, code: str) -> None:
        """End an attempt that died; the job waits for the next one, or fails after the last."""
        self._write(
            lambda session: queue.retry(
                session,
                self._lease,
                reason,
                code=code,
                retry_seconds=self._settings.retry_seconds,
            )
        )

    def pause_for_room(self, reason: str) -> None:
        """Pause the job until there is room in the storage."""
        self._write(lambda session: queue.pause_for_room(session, self._lease, reason))

    def warn(self, message: str) -> None:
        """Add a warning to the job's log."""
        self._event(message, level="warn")

    def _started(self, started: Started) -> None:
        self._total_steps, self._run, self._started_at = started.total_steps, started, time.monotonic()
        experts = ", none of them in experts" if started.has_experts else ""
        resumed = f", resumed at step {started.resumed_step}" if started.resumed_step else ""
        message = (
            f"Training on {started.device}: {started.examples} examples, "
            f"{started.tokens_per_epoch} tokens an epoch, {started.total_steps} steps, "
            f"{started.trainable_parameters:,} trainable parameters{experts}{resumed}"
        )

        def write(session: Session) -> None:
            queue.record_event(session, self._lease, message)
            if started.layout_reason:
                queue.record_event(
                    session, self._lease, f"{_LAYOUTS[started.layout]}, because {started.layout_reason}"
                )
            if started.activation_checkpointing:
                queue.record_event(session, self._lease, _RECOMPUTED)
            self._expect(session, started)
            if started.resumed_step:  # the attempt that saved it may have died before it was recorded
                queue.record_saved(session, self._lease, started.resumed_step)

        self._write(write)

    def _expect(self, session: Session, started: Started) -> None:
        """When the job may end, by what others took, until its own steps tell."""
        speed = self._speed(started, seconds=0.0, tokens=0, peak=0)
        left = estimates.seconds_by_others(session, self._settings, speed) if speed else None
        if left is not None:
            queue.record_estimate(session, self._lease, estimated_finish=time.time() + left)

    def _speed(self, started: Started, *, seconds: float, tokens: int, peak: int) -> TrainingSpeed | None:
        """What this attempt takes; None if nothing is left to do, or the trainer does not count its work."""
        share = 1 - started.resumed_step / started.total_steps
        if not started.training.steps * share:
            return None
        return TrainingSpeed(
            job_id=self.job.id,
            base_model=self.job.model,
            device=detect().name,
            worker_id=self.job.worker_id or "",
            lora_rank=self.job.hyperparameters["lora_rank"],
            value_bytes=started.value_bytes,
            tokens=int(tokens * share),
            seconds=seconds,
            startup_seconds=self._started_at - self._began,
            training=msgspec.to_builtins(started.training.times(share)),
            evaluation=msgspec.to_builtins(started.evaluation.times(share)),
            largest=msgspec.to_builtins(started.largest),
            resident_memory_bytes=started.resident_memory_bytes,
            peak_memory_bytes=peak,
        )

    def _step(self, step: Step) -> None:
        number = step.metrics.step
        if number <= self.recorded_step:
            return  # an earlier attempt recorded it
        left = (self._total_steps - number) * step.elapsed_seconds / number
        message = f"Step {number}/{self._total_steps}: training loss={step.metrics.train_loss:.4f}"
        if step.metrics.valid_loss is not None:
            message += f", validation loss={step.metrics.valid_loss:.4f}"
        if step.metrics.train_reward_margin is not None:
            message += f", reward margin={step.metrics.train_reward_margin:.4f}"
        data = _numbers(step.metrics) | {
            "total_steps": self._total_steps,
            "epoch": step.epoch,
            "learning_rate": step.learning_rate,
            "trained_tokens": step.tokens,
            "elapsed_seconds": round(step.elapsed_seconds, 3),
        }
        self._write(
            lambda session: queue.record_step(
                session,
                self._lease,
                number,
                message,
                data=data,
                estimated_finish=time.time() + left,
            )
        )
        self.recorded_step = number
        reach("reporter.step_recorded")

    def _saved(self, saved: Saved) -> None:
        try:
            self._publish(saved.path)
        except FileNotFoundError:
            return  # the trainer has saved newer ones since, and removed this one
        self._write(lambda session: queue.record_saved(session, self._lease, saved.step))
        if not self._has_pruned:
            with self._database.reader() as session:
                of_job = select(Adapter.storage_key).where(Adapter.job_id == self.job.id)
                served = session.scalars(of_job).all()
            self._files.remove_earlier(served)
            self._has_pruned = True

    def _checkpoint(self, checkpoint: Checkpoint) -> None:
        step = checkpoint.metrics.step
        key = self._publish(checkpoint.path)
        size = self._storage.size(key)
        metrics = _numbers(checkpoint.metrics)

        def write(session: Session) -> None:
            name = publication.publish_checkpoint(
                session, self.job, self._lease, step=step, storage_key=key, size=size, metrics=metrics
            )
            queue.record_event(session, self._lease, f"Checkpoint created at step {step}: {name}")

        reach("reporter.before_checkpoint_row")
        self._write(write)
        reach("reporter.after_checkpoint_row")

    def _finished(self, finished: Finished) -> None:
        is_alone = self._settings.worker_jobs == 1  # else others took some of the time and the memory
        run = self._run if is_alone else None
        speed = run and self._speed(
            run,
            seconds=finished.elapsed_seconds,
            tokens=finished.trained_tokens,
            peak=finished.peak_memory_bytes,
        )
        reach("reporter.before_result_file")
        try:
            parity, verdict = self._compare_with_served(finished)
        except ParityError as error:
            self.fail("parity_failed", f"{error}.")
            return
        result = self._write_result()
        key = self._publish(finished.path)
        size = self._storage.size(key)

        def write(session: Session) -> None:
            file = files_service.create_result_file(
                session, self.job.project_id, f"{self.job.id}-metrics.csv", result
            )
            reach("reporter.result_row")
            queue.record_event(session, self._lease, verdict, level="info" if parity else "warn")
            name = publication.publish_model(
                session,
                self.job,
                self._lease,
                storage_key=key,
                size=size,
                trained_tokens=finished.trained_tokens,
                result_file_id=file.id,
            )
            if parity:
                adapters_service.record_parity(session, name, msgspec.to_builtins(parity))
            if speed:
                estimates.record(session, speed)
            reach("reporter.model_row")

        self._write(write)
        reach("reporter.published")

    def _write_result(self) -> StoredFile:
        """Write the file of the job's metrics.

        It is durable before a row names it; a crash in between leaves a file without a row.
        """
        with self._database.reader() as session:
            metrics = queue.recorded_metrics(session, self.job.id)
        result = self._storage.write(f"files/{new_id('result-')}", _result_csv(metrics))
        reach("reporter.after_result_file")
        return result

    def _compare_with_served(self, finished: Finished) -> tuple[Parity | None, str]:
        """Compare the model with an engine's answers; return the parity, None if unknown, and a verdict.

        The engine is asked for the last checkpoint, which has the model's weights and a name already.

        Raises:
            ParityError: the engine does not serve what was trained.
        """
        if not finished.samples:
            return (
                None,
                "Not compared with an engine's answers: no example was short enough, or memory ran out",
            )
        with self._database.reader() as session:
            file = session.get_one(File, self.job.learnt_file_id)
            key = self._publish(finished.path)
            checkpoint = select(Adapter.name).where(Adapter.job_id == self.job.id, Adapter.storage_key == key)
            name = session.scalars(checkpoint).first() or ""
        try:
            with self._database.reader() as session:
                engine = find_engine(session, self._settings, self.job.model)
            with self._storage.local(file.storage_key) as path:
                parity = compare(engine, name, path, finished.samples)
        except NoAnswerError as reason:
            keep_samples(self._storage, self.job, finished.samples)
            return None, f"Not yet compared with an engine's answers: {reason}; it will be once one answers"
        return parity, str(parity)

    def _publish(self, path: str) -> str:
        """Publish a checkpoint that the trainer has saved, and return its key."""
        return self._files.publish(Path(path))

    def _event(self, message: str, *, level: str = "info") -> None:
        self._write(lambda session: queue.record_event(session, self._lease, message, level=level))

    def _write(self, work: Callable[[Session], None]) -> None:
        """Run one transaction, again and again while the database is away."""

        def attempt() -> None:
            with self._database.writer() as session:
                work(session)

        self._retrying(attempt)


def _numbers(metrics: Metrics) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(metrics).items() if value is not None}


def _result_csv(steps: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(RESULT_COLUMNS)
    for step in steps:
        writer.writerow([step.get(metric) for metric in RESULT_COLUMNS.values()])
    return text.getvalue().encode()
