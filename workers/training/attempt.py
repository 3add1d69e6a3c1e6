"""One attempt at a job: the trainer is told what to train, and what it says is recorded."""

from __future__ import annotations

import logging
import threading

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from app.base_models.stored import StoredBases
from app.core.database import Database
from app.core.errors import StorageFullError
from app.core.lease import LeaseLostError
from app.core.settings import Settings
from app.core.tracing import span
from app.files.models import File
from app.fine_tuning import queue
from app.fine_tuning.models import FineTuningJob
from app.models.adapters.models import Adapter
from app.models.catalogue import Catalogue, template_options
from app.storage.base import Storage, StorageUnavailableError
from app.storage.retrying import storage_retrying
from workers.crash_points import reach
from workers.device_sharing import TrainingTurns
from workers.training.attempt_files import AttemptFiles
from workers.training.child import Death, TrainerChild
from workers.training.progress_spans import ProgressSpans
from workers.training.protocol import (
    Failed,
    Finished,
    Hyperparameters,
    Progress,
    Stopped,
    TrainingSpec,
    out_of_memory,
)
from workers.training.reporter import JobReporter

log = logging.getLogger("toque.worker")

_DEVICE_POLL_SECONDS = 0.2


class Attempt:
    """One lease of a job. `run` trains it, on one thread; other threads may let go of it meanwhile."""

    def __init__(
        self,
        job: FineTuningJob,
        settings: Settings,
        database: Database,
        storage: Storage,
        child: TrainerChild,
        turns: TrainingTurns | None,
        stopping: threading.Event,
    ) -> None:
        """`stopping` is set when the worker ends: the job then goes back to the queue."""
        self.job = job
        self.lease = queue.LEASES.lease_of(job)
        self.name = f"{job.id}/{job.lease_epoch}"
        """Tells it apart from other attempts, those at the same job among them."""
        self.goes_alone = False
        """Whether the trainer must have no other job beside it from now on."""
        self._settings = settings
        self._database = database
        self._child = child
        self._turns = turns
        self._stopping = stopping
        self._files = AttemptFiles(storage, f"jobs/{job.id}", job.lease_epoch)
        self._reporter = JobReporter(database, storage, self._files, job, self.lease, settings)
        self._bases = StoredBases(settings, database, storage)
        self._retrying = storage_retrying(settings.storage_patience_seconds, stopping)
        self._is_over = False
        """Whether nothing more is to be recorded, though the trainer may not know yet."""
        self._halvings = 0
        self._starved_at = -1

    def run(self) -> None:
        """Make the attempt, to its end."""
        reach("worker.claimed")
        log.info("%s: attempt %d", self.job.id, self.job.lease_epoch)
        described = {
            "toque.job_id": self.job.id,
            "toque.attempt": self.job.lease_epoch,
            "gen_ai.request.model": self.job.model,
        }
        try:
            with self._files, span("train", described, parent={"traceparent": self.job.traceparent or ""}):
                if self._has_device():
                    while (end := self._train()) is not None and self._goes_on_after(end):
                        pass
        except LeaseLostError as lost:
            self.let_go(lost)
        except SQLAlchemyError as error:
            self._give_up(error)
        finally:
            self._leave_device()

    def let_go(self, lost: LeaseLostError) -> None:
        """Stop training, as the lease is lost; if the job was paused, the trainer stays warm for the next."""
        log.warning("%s", lost)
        if lost.status == "paused":
            self._is_over = True
            self._child.stop_job(self.name)
        else:
            self._drop()

    def _give_up(self, error: SQLAlchemyError) -> None:
        """Stop training, as nothing can be recorded."""
        message = "%s: cannot record progress; the job is retried after its lease expires"
        log.error(message, self.job.id, exc_info=error)
        self._drop()

    def _drop(self) -> None:
        self._is_over = True
        self._child.drop_job(self.name)

    def _is_wanted(self) -> bool:
        return not self._is_over and not self._stopping.is_set()

    def _has_device(self) -> bool:
        """Wait until the engines on a shared device sleep; return False if the attempt ends meanwhile."""
        is_noted = False
        while self._turns and self._turns.engines_awake():
            if not self._is_wanted():
                if not self._is_over:
                    self._reporter.release()
                return False
            if not is_noted:
                self._reporter.note("Waiting for the engine to release the GPU")
                is_noted = True
            self._stopping.wait(_DEVICE_POLL_SECONDS)
        return True

    def _leave_device(self) -> None:
        """Give a shared device back to the engine; the trainer does not stay warm on it."""
        if self._turns:
            self._child.stop()
            self._turns.end()

    def _train(self) -> Death | Stopped | None:
        """Train from the newest checkpoint on.

        Returns:
            None if the attempt has ended. Otherwise what ended the training: the trainer's death, or a stop
            that the worker has not asked for.
        """
        try:
            spec = self._retrying(self._spec)
        except OSError as error:
            self._give_back(error)
            return None
        spans = ProgressSpans()
        for message in self._child.train(spec, alone=self.goes_alone, is_wanted=self._is_wanted):
            if isinstance(message, Death):
                if self._is_wanted():
                    return message
                break
            if isinstance(message, Stopped) and message.cause != "request" and self._is_wanted():
                return message
            spans.record(message)
            has_ended = isinstance(message, Stopped | Finished | Failed)
            if not has_ended and not self._is_wanted():
                self._child.stop_job(self.name)  # again, as a trainer that was still starting did not hear it
            if not self._is_over:
                self._report(message)
            if has_ended:
                return None
        if not self._is_over:
            self._reporter.release()
        return None

    def _report(self, progress: Progress) -> None:
        """Record what the trainer has said."""
        try:
            if self._turns and isinstance(progress, Finished):
                self._leave_device()  # for the comparison with an engine's answers
                self._turns.await_engine(self.job.model, self._stopping)
            self._retrying(self._reporter.report, progress)
        except LeaseLostError as lost:
            self.let_go(lost)
        except SQLAlchemyError as error:
            self._give_up(error)
        except StorageFullError as error:
            self._drop()
            self._reporter.pause_for_room(str(error))
        except StorageUnavailableError as error:
            self._drop()
            self._give_back(error)

    def _goes_on_after(self, end: Death | Stopped) -> bool:
        """Record how the trainer left the job; return whether the same attempt goes on."""
        if isinstance(end, Death):
            if not end.had_others:
                return self._survives(end)
            # Nobody knows which of them is to blame, so this counts against none.
            self.goes_alone = True
            reason = f"The trainer died ({end.reason}) while several jobs took turns: they go on one by one"
        elif end.cause == "memory":
            self.goes_alone = True
            reason = "Out of memory while several jobs took turns: this one goes on alone"
        else:
            reason = "The trainer starts anew, because another job that took turns with this one failed"
        self._reporter.warn(reason)
        return True

    def _survives(self, death: Death) -> bool:
        """Whether the job goes on, with smaller micro-batches, after a death that is its own fault."""
        no_room = out_of_memory(msgspec.convert(self.job.hyperparameters, Hyperparameters))
        if death.ran_out_of_memory:
            if not death.has_begun:  # the base alone, which smaller micro-batches leave as it is
                self._reporter.report(no_room)
                return False
            # Once there is nothing left to halve, the trainer says so itself.
            self._reporter.warn("Out of memory: the trainer restarts with smaller micro-batches")
        elif death.was_starved:
            if self._reporter.recorded_step == self._starved_at:
                self._reporter.report(no_room)
                return False
            self._starved_at = self._reporter.recorded_step
            self._reporter.warn(
                "Out of memory: the trainer was killed; it restarts with smaller micro-batches"
            )
        else:
            self._reporter.retry(f"The trainer died ({death.reason})", code="trainer_died")
            return False
        self._halvings += 1
        return True

    def _give_back(self, error: OSError) -> None:
        """Let another attempt train the job, as this one cannot use the storage."""
        if self._stopping.is_set():
            self._reporter.release()
        else:
            message = f"A worker cannot read or write a file ({error}); every process needs the same storage"
            self._reporter.retry(message, code="storage_unusable")

    def _spec(self) -> TrainingSpec:
        job, files = self.job, self._files
        resumable = files.newest_resumable(self._reporter.recorded_step)
        for problem in resumable.damaged:
            self._reporter.warn(f"A checkpoint is damaged ({problem}); an earlier one is used")
        with self._database.reader() as session:
            base = Catalogue.read(session, self._settings).get(job.model)
            training_file = session.get_one(File, job.learnt_file_id)
            validation_file = session.get(File, job.validation_file_id) if job.validation_file_id else None
            # It may be deleted: its files stay until no job needs them.
            parent = session.get_one(Adapter, job.parent) if job.parent else None
            failure_seconds = queue.failure_seconds(session, job.id)
        self._bases.fetch(base, self._stopping)
        return TrainingSpec(
            job_id=job.id,
            attempt=self.name,
            base_model=base.name,
            base_model_dir=str(self._settings.base_model_dir(base)),
            template=template_options(base),
            training_file=str(files.path_of(training_file.storage_key)),
            validation_file=str(files.path_of(validation_file.storage_key)) if validation_file else None,
            output_dir=str(files.folder),
            resume_from=str(resumable.checkpoint) if resumable.checkpoint else None,
            checkpoint_seconds=self._settings.checkpoint_seconds,
            failure_seconds=failure_seconds,
            seed=job.seed,
            halvings=self._halvings,
            hyperparameters=msgspec.convert(job.hyperparameters, Hyperparameters),
            method=job.method,
            parent=str(files.path_of(parent.storage_key)) if parent else None,
        )
