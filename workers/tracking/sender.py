"""Sends the metrics in jobs' logs to their trackers: a coroutine for each run that the process has leased."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

from anyio import to_thread

from app.core.database import Database
from app.core.lease import Lease, LeaseLostError, async_heartbeat
from app.core.lease_runner import LeasedTransactions, LeaseRunner
from app.core.settings import Settings
from app.fine_tuning import tracked_runs
from app.fine_tuning.models import FINAL_STATUSES, Event, FineTuningJob, TrackedRun
from workers.tracking.tracker import LABELS, Ending, RunDetails, TrackerRun, open_run

log = logging.getLogger("toque.tracking")

_MOST_RUNS = 8
"""Runs that one process sends to at once."""
_CALL_SECONDS = 120.0
"""How long a tracker's library may take for one call."""
_NO_METRICS = ("step", "total_steps")
"""Numbers in a line of the log that are no metrics."""

T = TypeVar("T")


class Sender:
    """Claims runs of trackers, and sends them what their jobs have logged."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._leases = LeaseRunner(settings, database, tracked_runs, self._execute, most=_MOST_RUNS)

    async def run(self) -> None:
        """Send until cancelled; the runs are then given back."""
        await self._leases.run()

    async def _execute(self, run: TrackedRun, lease: Lease) -> None:
        def renew() -> None:
            with self._database.writer() as session:
                tracked_runs.LEASES.renew(session, lease, self._leases.lease_seconds)

        transactions = LeasedTransactions(self._database, lease)
        try:
            async with async_heartbeat(self._settings.heartbeat_seconds, renew):
                await self._follow(run, lease, transactions)
        except LeaseLostError as lost:
            log.info("%s: %s", lease.id, lost)
        except Exception as error:  # whatever a tracker's library raises is no concern of the job
            log.exception("%s: its metrics cannot be sent to %s now", lease.id, run.tracker)
            warning = _warning(run.tracker, error)
            await self._leases.write(
                lambda session, held: tracked_runs.record_failure(session, held, warning), lease
            )

    async def _follow(self, run: TrackedRun, lease: Lease, transactions: LeasedTransactions) -> None:
        """Send the job's steps until it has ended, or waits for another attempt.

        Raises:
            LeaseLostError: another process sends to the run.
        """
        job = await transactions.read(tracked_runs.find_job, lease)
        if job.status in FINAL_STATUSES and job.recorded_step == 0:  # it was never trained: nothing to show
            await transactions.write(tracked_runs.end)
            return
        opened = await _call(open_run, run.tracker, self._details(run, job))
        try:
            if not run.is_announced:
                await transactions.write(tracked_runs.announce, _announcement(run, opened))
            sent = run.sent_step if opened.last_step is None else opened.last_step
            while True:
                # Before the steps are read, so that the last ones are not missed.
                job = await transactions.read(tracked_runs.find_job, lease)
                while events := await transactions.read(tracked_runs.find_steps, lease, sent):
                    for event in events:
                        sent = await _send(opened, event)
                    await transactions.write(tracked_runs.record_sent, sent)
                if job.status != "running":
                    break
                await asyncio.sleep(self._settings.poll_seconds)
        except BaseException:
            await _call(opened.close, None)
            raise
        has_ended = job.status in FINAL_STATUSES
        await _call(opened.close, cast(Ending, job.status) if has_ended else None)
        await transactions.write(tracked_runs.end if has_ended else tracked_runs.release)

    def _details(self, run: TrackedRun, job: FineTuningJob) -> RunDetails:
        return RunDetails(
            job_id=job.id,
            project=run.project,
            entity=run.entity,
            name=run.name,
            tags=run.tags,
            config={
                "model": job.parent or job.model,
                "method": job.method,
                "seed": job.seed,
                "suffix": job.suffix,
                "training_file": job.training_file_id,
                "training_file_sha256": job.training_file.sha256,
                **job.hyperparameters,
            },
            created_at=job.created_at,
            folder=self._settings.data_dir / "trackers",
        )


async def _send(opened: TrackerRun, event: Event) -> int:
    data: dict[str, Any] = event.data or {}
    metrics = {
        name: float(value)
        for name, value in data.items()
        if name not in _NO_METRICS and isinstance(value, int | float)
    }
    step: int = data["step"]
    await _call(opened.log, step, metrics, event.created_at)
    return step


async def _call(function: Callable[..., T], *arguments: Any) -> T:
    """Run one call of a tracker's library on a thread; one that hangs is left behind.

    Raises:
        TimeoutError: it has taken too long.
        Exception: whatever it raises.
    """
    async with asyncio.timeout(_CALL_SECONDS):
        return await to_thread.run_sync(lambda: function(*arguments), abandon_on_cancel=True)


def _announcement(run: TrackedRun, opened: TrackerRun) -> str:
    where = opened.url or f"the run '{run.name}' of the project '{run.project}'"
    return f"The job's metrics are sent to {LABELS[run.tracker]}: {where}"


def _warning(tracker: str, error: Exception) -> str:
    """Say why in a few words; the library's own may name addresses and secrets."""
    reason = f"{type(error).__name__}; the worker's log has the details"
    if isinstance(error, ModuleNotFoundError):
        reason = f"{error.name} is not installed where the worker runs (make install-trackers)"
    elif isinstance(error, TimeoutError):
        reason = "it did not answer in time"
    sent = f"The job's metrics cannot be sent to {LABELS[tracker]} now: {reason}"
    return f"{sent}. The job is not affected, and they are sent later"
