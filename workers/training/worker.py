"""The worker: claims jobs, and has its trainer process train them.

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
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext

from sqlalchemy.exc import SQLAlchemyError

from app import __version__
from app.core import migrations
from app.core.database import Database, new_id
from app.core.lease import Heartbeat
from app.core.logs import set_up_logging
from app.core.settings import Settings
from app.core.tracing import tracing
from app.fine_tuning import worker_registry
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import FineTuningJob, Worker
from app.models.catalogue import obtainable_names, prepared_names
from app.storage import open_storage
from workers.crash_points import reach
from workers.device import detect
from workers.device_sharing import TrainingTurns, shared_device
from workers.maintenance import Maintenance
from workers.tracking.child import TrackingChild
from workers.training.attempt import Attempt
from workers.training.attempts import Attempts
from workers.training.child import TRAINER, TrainerChild
from workers.training.idleness import Idleness
from workers.training.verification import verify_one
from workers.worker_locks import WorkerLocks

log = logging.getLogger("toque.worker")

_DRAIN_SECONDS = 20.0
"""How long a worker that is told to stop waits for checkpoints before it kills the trainer."""


class TrainingWorker:
    """Trains one job at a time, or several in turns, in a child process that the command `trainer` starts."""

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
        shared = shared_device(settings, detect())
        self._turns = TrainingTurns(self._database, settings, shared, self._row.id) if shared else None
        self._most_jobs = 1 if self._turns else settings.worker_jobs
        self._child = TrainerChild(trainer, settings.training_threads, self._most_jobs)
        self._attempts = Attempts(self._database, settings.lease_seconds, self._turns)
        self._maintenance = Maintenance(
            settings,
            self._database,
            self._storage,
            self._locks,
            self._verify_one,
            self._attempts.renewed_job_ids,
        )

    def run(self) -> None:
        """Claim and train jobs until `stop`, or until idle."""
        log.info("%s on %s waits for jobs", self._row.id, self._row.device)
        tracking = TrackingChild(self._settings.tracker) if self._settings.tracker else nullcontext()
        reports = Heartbeat(self._settings.heartbeat_seconds, self._report_worker)
        renewals = Heartbeat(self._settings.heartbeat_seconds, self._attempts.renew)
        threads = ThreadPoolExecutor(self._most_jobs, thread_name_prefix="attempt")
        with reports, renewals, tracking, self._idleness.notifications, threads:
            try:
                self._claim_and_train(threads)
            except BaseException:
                self.stop()  # the jobs of other threads, too
                raise
        self._child.close()
        self._retire()

    def _claim_and_train(self, threads: ThreadPoolExecutor) -> None:
        running: set[Future[None]] = set()
        busy_at = time.monotonic()
        while not self._stopping.is_set():
            self._maintenance.run_maintenance()
            if (job := self._claim()) is not None:
                running.add(threads.submit(self._make, self._begin(job)))
            elif (
                not running
                and self._until_idle
                and time.monotonic() - busy_at > self._settings.worker_idle_seconds
            ):
                log.info("%s ends: there is no job for it", self._row.id)
                return
            else:
                self._idleness.wait(min(self._idle_seconds, self._settings.worker_idle_seconds))
            if len(running) == self._most_jobs:
                wait(running, return_when=FIRST_COMPLETED)
            if running:
                busy_at = time.monotonic()
            for ended in [attempt for attempt in running if attempt.done()]:
                running.remove(ended)
                ended.result()
        for last in running:
            last.result()

    def stop(self) -> None:
        """End `run`, from another thread: what is trained is saved and goes back to the queue."""
        self._stopping.set()
        self._idleness.end()
        self._child.stop_all_jobs()
        too_long = threading.Timer(_DRAIN_SECONDS, self._child.close)
        too_long.daemon = True  # an idle worker ends at once
        too_long.start()

    def _claim(self) -> FineTuningJob | None:
        """Claim the next job in the queue.

        One that cannot be trained beside this worker's others stays there, and those behind it wait with it:
        if they went first, it might wait for ever.
        """
        self._idle_seconds = self._settings.poll_seconds
        try:
            if not self._knows_schema():
                return None
            with self._database.writer() as session:
                if not (trainable := obtainable_names(session, self._settings)):
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
                if job is not None and not self._attempts.have_room_for(job):
                    session.rollback()
                    return None
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

    def _begin(self, job: FineTuningJob) -> Attempt:
        attempt = Attempt(
            job, self._settings, self._database, self._storage, self._child, self._turns, self._stopping
        )
        self._attempts.begin(attempt)
        return attempt

    def _make(self, attempt: Attempt) -> None:
        """Make the attempt, on a thread of its own."""
        try:
            attempt.run()
        finally:
            self._attempts.end(attempt)
            self._idleness.interrupt()

    def _verify_one(self) -> None:
        with self._database.reader() as session:
            trainable = prepared_names(session, self._settings)
        verify_one(self._database, self._storage, self._settings, trainable)

    def _report_worker(self) -> None:
        self._child.kill_if_silent(self._settings.trainer_silence_seconds)
        self._row.memory_bytes, self._row.job_id = self._child.memory_bytes(), self._attempts.job_id
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
