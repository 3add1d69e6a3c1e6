"""The attempts that a worker makes at the same time: which fit together, and the renewal of their leases."""

from __future__ import annotations

import threading
from collections.abc import Collection

from app.core.database import Database
from app.core.lease import LeaseLostError
from app.fine_tuning import queue
from app.fine_tuning.models import FineTuningJob
from workers.device_sharing import TrainingTurns
from workers.training.attempt import Attempt


class Attempts:
    """The attempts that have not ended. All of them train on one base model, stored in one way."""

    def __init__(self, database: Database, lease_seconds: float, turns: TrainingTurns | None) -> None:
        self._database = database
        self._lease_seconds = lease_seconds
        self._turns = turns
        self._lock = threading.Lock()
        self._renewed: dict[str, Attempt] = {}
        self._running: tuple[Attempt, ...] = ()

    @property
    def job_id(self) -> str | None:
        """The id of the job that was begun first; None without one."""
        return next((attempt.job.id for attempt in self._running), None)

    def renewed_job_ids(self) -> Collection[str]:
        """Return the ids of the jobs whose leases are renewed."""
        with self._lock:
            return [attempt.job.id for attempt in self._renewed.values()]

    def have_room_for(self, job: FineTuningJob) -> bool:
        """Whether the job can be trained beside those that are."""
        return _fit_together([*(attempt.job for attempt in self._running), job]) and not any(
            attempt.goes_alone for attempt in self._running
        )

    def begin(self, attempt: Attempt) -> None:
        """Renew the lease of a job that has been claimed, from now on."""
        with self._lock:
            self._running = (*self._running, attempt)
            self._renewed[attempt.name] = attempt

    def end(self, attempt: Attempt) -> None:
        """Renew its lease no more; no renewal is under way when this returns."""
        with self._lock:
            self._running = tuple(other for other in self._running if other is not attempt)
            self._renewed.pop(attempt.name, None)

    def renew(self) -> None:
        """Renew all leases, and that of a shared device, in one transaction.

        An attempt whose lease is lost is told so, once.
        """
        with self._lock:
            if not self._renewed:
                return
            lost: dict[str, LeaseLostError] = {}
            with self._database.writer() as session:
                for name, attempt in self._renewed.items():
                    try:
                        queue.LEASES.renew(session, attempt.lease, self._lease_seconds)
                        if self._turns:
                            self._turns.renew(session)
                    except LeaseLostError as error:
                        lost[name] = error
            for name, error in lost.items():
                self._renewed.pop(name).let_go(error)


def _fit_together(jobs: Collection[FineTuningJob]) -> bool:
    """Whether one trainer can have the jobs in memory together. One on several GPUs has it to itself."""
    bases = {(job.model, job.hyperparameters.get("quantization")) for job in jobs}
    return len(jobs) == 1 or (len(bases) == 1 and all(job.gpus == 1 for job in jobs))
