"""The worker: claims one job after another, and has its trainer process train it.

`python -m workers.training.worker` claims, trains and reports until it is told to stop. It imports no torch:
the trainer is a child process, which may die at any time.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from app import __version__
from app.core import migrations
from app.core.database import Database, new_id
from app.core.errors import StorageFullError
from app.core.lease import Heartbeat, Lease, LeaseLostError
from app.core.logs import set_up_logging
from app.core.settings import Settings
from app.core.tracing import span, tracing
from app.files.models import File
from app.fine_tuning import queue, worker_registry
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import FineTuningJob, Worker
from app.models.adapters.models import Adapter
from app.models.catalogue import Catalogue, prepared_names, template_options
from app.storage import open_storage
from app.storage.base import StorageUnavailableError
from app.storage.retrying import storage_retrying
from workers.crash_points import reach
from workers.device import detect
from workers.device_sharing import TrainingTurns, shared_device
from workers.maintenance import Maintenance
from workers.tracking.child import TrackingChild
from workers.training.attempt_files import AttemptFiles
from workers.training.child import TRAINER, TrainerChild
from workers.training.idleness import Idleness
from workers.training.progress_spans import ProgressSpans
from workers.training.protocol import (
    Failed,
    Finished,
    Hyperparameters,
    Stopped,
    TrainingSpec,
    out_of_memory,
)
from workers.training.reporter import JobReporter
from workers.training.verification import verify_one
from workers.worker_locks import WorkerLocks

log = logging.getLogger("toque.worker")

_DRAIN_SECONDS = 20.0
"""How long a worker that is told to stop waits for a checkpoint before it kills the trainer."""
_DEVICE_POLL_SECONDS = 0.2


class TrainingWorker:
    """Trains one job at a time, in a child process that the command `trainer` starts."""

    def __init__(
        self,
        settings: Settings,
        trainer: Sequence[str] = TRAINER,
        *,
        until_idle: bool = False,
        gpus: int | None = None,
    ) -> None:
        """`until_idle` ends `run` after `worker_idle_seconds` without a job. `gpus` is how many GPUs each job
        shall ask for; None if any number that this machine offers will do.
        """
        self._settings = settings
        self._until_idle = until_idle
        self._least_gpus = gpus or 1
        self._database = Database(settings.sqlalchemy_url)
        self._storage = open_storage(settings)
        self._child = TrainerChild(trainer, settings.training_threads)
        self._stopping = threading.Event()
        self._schema_is_known = False
        self._idleness = Idleness(settings, self._database)
        self._idle_seconds = settings.poll_seconds
        self._row = Worker(
            id=new_id("worker_"),
            hostname=socket.gethostname(),
            pid=os.getpid(),
            device=detect().name,
            device_memory_bytes=detect().memory_bytes,
            gpus=detect().offered(gpus or settings.training_gpus),
            version=__version__,
            started_at=time.time(),
        )
        self._locks = WorkerLocks(settings.sqlalchemy_url, self._row.id)
        self._maintenance = Maintenance(
            settings, self._database, self._storage, self._locks, self._verify_one
        )
        shared = shared_device(settings, detect())
        self._turns = TrainingTurns(self._database, settings, shared, self._row.id) if shared else None

    def run(self) -> None:
        """Claim and train jobs until `stop`, or until idle."""
        log.info("%s on %s waits for jobs", self._row.id, self._row.device)
        tracking = TrackingChild(self._settings.tracker) if self._settings.tracker else nullcontext()
        heartbeat = Heartbeat(self._settings.heartbeat_seconds, self._report_worker)
        with heartbeat, tracking, self._idleness.notifications:
            idle_since = time.monotonic()
            while not self._stopping.is_set():
                self._maintenance.run_maintenance()
                job = self._claim()
                if job is not None:
                    self._train(job)
                    idle_since = time.monotonic()
                elif self._until_idle and time.monotonic() - idle_since > self._settings.worker_idle_seconds:
                    log.info("%s ends: there is no job for it", self._row.id)
                    break
                else:
                    self._idleness.wait(min(self._idle_seconds, self._settings.worker_idle_seconds))
        self._child.close()
        self._retire()

    def stop(self) -> None:
        """End `run`, from another thread: the current job is saved and goes back to the queue."""
        self._stopping.set()
        self._idleness.end()
        self._child.ask_to_stop()
        too_long = threading.Timer(_DRAIN_SECONDS, self._child.close)
        too_long.daemon = True  # an idle worker ends at once
        too_long.start()

    def _claim(self) -> FineTuningJob | None:
        self._idle_seconds = self._settings.poll_seconds
        try:
            if not self._knows_schema():
                return None
            with self._database.writer() as session:
                if not (trainable := prepared_names(session, self._settings)):
                    return None
                if self._turns and not self._turns.may_begin(session):
                    return None
                job = claim_next(
                    session,
                    self._row.id,
                    trainable,
                    self._settings.lease_seconds,
                    gpus=self._row.gpus,
                    least_gpus=self._least_gpus,
                    running_limit=self._settings.max_running_jobs_per_project,
                )
                if job is None:
                    self._idle_seconds = self._idleness.seconds(session, trainable)
                elif self._turns:
                    self._turns.begin(session)
                reach("worker.claim_uncommitted")
        except SQLAlchemyError as error:
            self._maintenance.database_was_away()
            log.warning("cannot claim a job: %s", error)
            return None
        return job

    def _knows_schema(self) -> bool:
        """Whether the schema is up to date: during an upgrade no attempt could record its end."""
        if not self._schema_is_known:
            self._schema_is_known = not migrations.is_outdated(self._database.engine)
            if not self._schema_is_known:
                log.warning("%s; no job is claimed until then", migrations.OUTDATED)
        return self._schema_is_known

    def _train(self, job: FineTuningJob) -> None:
        """Run one attempt to its end."""
        reach("worker.claimed")
        log.info("%s: attempt %d", job.id, job.lease_epoch)
        lease = queue.LEASES.lease_of(job)
        files = AttemptFiles(self._storage, f"jobs/{job.id}", job.lease_epoch)
        reporter = JobReporter(self._database, self._storage, files, job, lease, self._settings)
        heartbeat = Heartbeat(
            self._settings.heartbeat_seconds, lambda: self._renew(lease), on_lost=self._stop_trainer
        )
        self._row.job_id = job.id
        attempt = {
            "toque.job_id": job.id,
            "toque.attempt": job.lease_epoch,
            "gen_ai.request.model": job.model,
        }
        try:
            with heartbeat, files, span("train", attempt, parent={"traceparent": job.traceparent or ""}):
                if self._has_device(reporter):
                    self._follow_trainer(job, files, reporter)
        except LeaseLostError as lost:
            log.warning("%s", lost)
            self._child.kill()
        except SQLAlchemyError:
            log.exception("%s: cannot record progress; the job is retried after its lease expires", job.id)
            self._child.kill()
        finally:
            self._row.job_id = None
            self._leave_device()

    def _has_device(self, reporter: JobReporter) -> bool:
        """Wait until the engines on a shared device sleep; return False if the job is released meanwhile."""
        is_noted = False
        while self._turns and self._turns.engines_awake():
            if self._stopping.is_set():
                reporter.release()
                return False
            if not is_noted:
                reporter.note("Waiting for the engine to release the GPU")
                is_noted = True
            self._stopping.wait(_DEVICE_POLL_SECONDS)
        return True

    def _leave_device(self) -> None:
        """Give a shared device back to the engine; the trainer does not stay warm on it."""
        if self._turns:
            self._child.stop()
            self._turns.end()

    def _follow_trainer(self, job: FineTuningJob, files: AttemptFiles, reporter: JobReporter) -> None:
        """Train to the end; after an out-of-memory kill, training goes on with smaller micro-batches."""
        halvings, starved_at = 0, -1
        while not self._follow_once(job, files, reporter, halvings):
            halvings += 1
            no_room = out_of_memory(msgspec.convert(job.hyperparameters, Hyperparameters))
            if self._child.ran_out_of_memory:
                if not self._child.has_begun:  # the base alone, which smaller micro-batches leave as it is
                    reporter.report(no_room)
                    return
                # Once there is nothing left to halve, the trainer says so itself.
                reporter.warn("Out of memory: the trainer restarts with smaller micro-batches")
                continue
            if not self._child.was_starved:
                reporter.retry(f"The trainer died ({self._child.exit_reason})", code="trainer_died")
                return
            if reporter.recorded_step == starved_at:
                reporter.report(no_room)
                return
            starved_at = reporter.recorded_step
            reporter.warn("Out of memory: the trainer was killed; it restarts with smaller micro-batches")

    def _follow_once(
        self, job: FineTuningJob, files: AttemptFiles, reporter: JobReporter, halvings: int
    ) -> bool:
        """Train from the newest checkpoint; return False if the trainer died before its job ended."""
        retrying = storage_retrying(self._settings.storage_patience_seconds, self._stopping)
        try:
            spec = retrying(self._spec, job, files, reporter, halvings)
        except OSError as error:
            self._give_back(reporter, error)
            return True
        owned, spans = True, ProgressSpans()
        for progress in self._child.train(spec):
            spans.record(progress)
            if isinstance(progress, Stopped):
                if owned:
                    reporter.release()
                return True
            if self._stopping.is_set() or not owned:
                self._child.ask_to_stop()  # again, as a trainer that was still starting did not hear it
            if owned:
                if self._turns and isinstance(progress, Finished):
                    self._leave_device()  # for the comparison with an engine's answers
                    self._turns.await_engine(job.model, self._stopping)
                try:
                    retrying(reporter.report, progress)
                except LeaseLostError as lost:
                    self._stop_trainer(lost)
                    owned = False
                except StorageFullError as error:
                    reporter.pause_for_room(str(error))
                    return True
                except StorageUnavailableError as error:
                    self._child.kill()
                    self._give_back(reporter, error)
                    return True
            if isinstance(progress, Finished | Failed):
                return True
        if owned and self._stopping.is_set():
            reporter.release()
        return not owned or self._stopping.is_set()

    def _give_back(self, reporter: JobReporter, error: OSError) -> None:
        """Let another attempt train the job, as this one cannot use the storage."""
        if self._stopping.is_set():
            reporter.release()
        else:
            message = f"A worker cannot read or write a file ({error}); every process needs the same storage"
            reporter.retry(message, code="storage_unusable")

    def _stop_trainer(self, lost: LeaseLostError) -> None:
        """Stop training a job whose lease is lost; if it was paused, the trainer stays warm for the next."""
        log.warning("%s", lost)
        if lost.status == "paused":
            self._child.ask_to_stop()
        else:
            self._child.kill()

    def _spec(
        self, job: FineTuningJob, files: AttemptFiles, reporter: JobReporter, halvings: int
    ) -> TrainingSpec:
        resumable = files.newest_resumable(reporter.recorded_step)
        for problem in resumable.damaged:
            reporter.warn(f"A checkpoint is damaged ({problem}); an earlier one is used")
        with self._database.reader() as session:
            base = Catalogue.read(session, self._settings).get(job.model)
            training_file = session.get_one(File, job.learnt_file_id)
            validation_file = session.get(File, job.validation_file_id) if job.validation_file_id else None
            # It may be deleted: its files stay until no job needs them.
            parent = session.get_one(Adapter, job.parent) if job.parent else None
            failure_seconds = queue.failure_seconds(session, job.id)
        return TrainingSpec(
            job_id=job.id,
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
            halvings=halvings,
            hyperparameters=msgspec.convert(job.hyperparameters, Hyperparameters),
            method=job.method,
            parent=str(files.path_of(parent.storage_key)) if parent else None,
        )

    def _verify_one(self) -> None:
        with self._database.reader() as session:
            trainable = prepared_names(session, self._settings)
        verify_one(self._database, self._storage, self._settings, trainable)

    def _renew(self, lease: Lease) -> None:
        with self._database.writer() as session:
            queue.LEASES.renew(session, lease, self._settings.lease_seconds)
            if self._turns:
                self._turns.renew(session)

    def _report_worker(self) -> None:
        self._child.kill_if_silent(self._settings.trainer_silence_seconds)
        self._row.memory_bytes = self._child.memory_bytes()
        with self._database.writer() as session:
            worker_registry.report(session, self._row)

    def _retire(self) -> None:
        self._locks.release()
        try:
            with self._database.writer() as session:
                worker_registry.remove(session, self._row.id)
        except SQLAlchemyError as error:
            log.warning("cannot delete the worker's row, which stays until it is a day old: %s", error)
        self._database.dispose()


def main(trainer: Sequence[str] = TRAINER, arguments: Sequence[str] = ()) -> None:
    """Run the worker until SIGTERM or SIGINT, or until it is idle if the arguments say so."""
    options = _options(arguments)
    settings = Settings()
    set_up_logging("worker", settings.log_format)
    # A thread waits for the signals: a signal handler would run on the main thread, which may hold the lock
    # that `stop` needs. Threads and children inherit the blocked signals.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    worker = TrainingWorker(settings, trainer, until_idle=options.until_idle, gpus=options.gpus)

    def stop_on_signal() -> None:
        signal.sigwait(signals)
        worker.stop()

    threading.Thread(target=stop_on_signal, name="signals", daemon=True).start()
    with tracing("toque-worker"):
        worker.run()


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers.training.worker")
    parser.add_argument("--until-idle", action="store_true")
    parser.add_argument("--gpus", type=int)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(arguments=sys.argv[1:])
