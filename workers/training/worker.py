"""The worker: claims one job after another, and has its trainer child train it.

`python -m workers.training.worker`, from the top: claim, train, report, until it is told to stop.
It imports no torch: the child does the training and may die at any time.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from app import __version__
from app.base_models import is_prepared
from app.database import Database, new_id
from app.files.models import File
from app.files.storage import LocalStorage
from app.fine_tuning import queue
from app.fine_tuning.models import FineTuningJob, Worker
from app.settings import Settings
from workers.device import detect
from workers.training.child import TrainerChild
from workers.training.protocol import Failed, Finished, Hyperparameters, TrainingSpec
from workers.training.reporter import JobReporter

log = logging.getLogger("toque.worker")

MAX_ATTEMPTS = 3


class TrainingWorker:
    """One process that trains one job at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = Database(settings.sqlalchemy_url)
        self._storage = LocalStorage(settings.storage_root)
        self._child = TrainerChild(settings.training_threads)
        self._stopping = threading.Event()
        self._row = Worker(
            id=new_id("worker_"),
            hostname=socket.gethostname(),
            pid=os.getpid(),
            device=detect().name,
            version=__version__,
            started_at=time.time(),
        )

    def run(self) -> None:
        """Trains until `stop`."""
        log.info("%s on %s waits for jobs", self._row.id, self._row.device)
        with Heartbeat(self._settings.heartbeat_seconds, self._report_worker):
            while not self._stopping.is_set():
                job = self._claim()
                if job is None:
                    self._stopping.wait(self._settings.poll_seconds)
                else:
                    self._train(job)
        self._child.wait()
        self._retire()

    def stop(self) -> None:
        """Ends `run`: the job at hand goes back to the queue."""
        self._stopping.set()
        self._child.close()

    def _claim(self) -> FineTuningJob | None:
        trainable = [entry.name for entry in self._settings.base_models if is_prepared(self._settings, entry)]
        if not trainable:
            return None
        try:
            with self._database.writer() as session:
                return queue.claim_next(session, self._row.id, trainable, self._settings.lease_seconds)
        except SQLAlchemyError as error:
            log.warning("the queue cannot be read: %s", error)
            return None

    def _train(self, job: FineTuningJob) -> None:
        """One attempt, to its end."""
        log.info("%s: attempt %d", job.id, job.lease_epoch)
        reporter = JobReporter(self._database, self._storage, job, patience=self._settings.lease_seconds)
        lease = Heartbeat(
            self._settings.heartbeat_seconds, lambda: self._renew(job), on_lost=self._child.kill
        )
        self._row.job_id = job.id
        try:
            with lease:
                self._follow_trainer(job, reporter)
        except queue.LeaseLostError:
            log.warning("%s: cancelled, or taken over by another worker", job.id)
            self._child.kill()
        except SQLAlchemyError:
            log.exception("%s: progress cannot be recorded; the job is tried again after its lease", job.id)
            self._child.kill()
        finally:
            self._row.job_id = None

    def _follow_trainer(self, job: FineTuningJob, reporter: JobReporter) -> None:
        if job.lease_epoch > MAX_ATTEMPTS:
            reporter.fail(
                "too_many_attempts", f"The job was tried {MAX_ATTEMPTS} times, and each attempt died."
            )
            return
        for progress in self._child.train(self._spec(job)):
            reporter.report(progress)
            if isinstance(progress, Finished | Failed):
                return
        # The child died without a last word.
        if self._stopping.is_set() or job.lease_epoch < MAX_ATTEMPTS:
            reporter.release()
        else:
            reporter.fail(
                "trainer_died",
                f"The trainer died in each of {MAX_ATTEMPTS} attempts ({self._child.exit_reason}). If it was "
                "killed for memory, lower batch_size or max_length; the worker's log has the details.",
            )

    def _spec(self, job: FineTuningJob) -> TrainingSpec:
        base = self._settings.base_model(job.model)
        assert base is not None, "only jobs of prepared bases are claimed"
        with self._database.reader() as session:
            training_file = session.get_one(File, job.training_file_id)
            validation_file = session.get(File, job.validation_file_id) if job.validation_file_id else None
        return TrainingSpec(
            job_id=job.id,
            base_model=base.name,
            base_model_dir=str(self._settings.base_model_dir(base)),
            training_file=str(self._storage.path(training_file.storage_key)),
            validation_file=str(self._storage.path(validation_file.storage_key)) if validation_file else None,
            output_dir=str(self._storage.path(f"jobs/{job.id}/{job.lease_epoch}")),
            seed=job.seed,
            hyperparameters=msgspec.convert(job.hyperparameters, Hyperparameters),
        )

    def _renew(self, job: FineTuningJob) -> None:
        with self._database.writer() as session:
            queue.renew_lease(session, job.id, job.lease_epoch, self._settings.lease_seconds)

    def _report_worker(self) -> None:
        with self._database.writer() as session:
            queue.report_worker(session, self._row)

    def _retire(self) -> None:
        try:
            with self._database.writer() as session:
                queue.remove_worker(session, self._row.id)
        except SQLAlchemyError as error:
            log.warning("the worker's row stays until it is old: %s", error)
        self._database.dispose()


class Heartbeat:
    """Calls `beat` at once and then every `interval` seconds, on a thread of its own, while its block runs.

    A beat that finds the lease lost calls `on_lost`, once; one that fails for any other reason is
    logged, and the next is tried.
    """

    def __init__(
        self, interval: float, beat: Callable[[], None], on_lost: Callable[[], None] | None = None
    ) -> None:
        self._interval = interval
        self._beat = beat
        self._on_lost = on_lost
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                self._beat()
            except queue.LeaseLostError:
                if self._on_lost is not None and not self._ended.is_set():
                    self._on_lost()
                return
            except SQLAlchemyError as error:
                log.warning("heartbeat: %s", error)
            if self._ended.wait(self._interval):
                return


def main() -> None:
    """The process: runs until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    worker = TrainingWorker(Settings())

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        worker.stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    worker.run()


if __name__ == "__main__":
    main()
