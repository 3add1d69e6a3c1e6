"""Follows a job until it ends: its new events, and a progress bar on stderr."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, cast

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from app.cli.output import stderr
from app.core.control_characters import visible

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

EXIT_CODES = {"succeeded": 0, "failed": 1, "cancelled": 3}
EXIT_TIMED_OUT = 4
EXIT_INTERRUPTED = 130

_POLL_SECONDS = 1.0
_MAX_POLL_SECONDS = 10.0
_REQUEST_SECONDS = 30.0

Show = Callable[["FineTuningJob", "list[FineTuningJobEvent]"], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The job's last known state, and the command's exit code."""

    job: FineTuningJob
    exit_code: int


def follow(client: OpenAI, job: FineTuningJob, timeout: float | None, show: Show) -> Outcome:
    """Calls `show` with the job and its new events until the job ends, time is up, or Ctrl-C."""
    try:
        for seen, events in _poll(client, job.id, timeout):
            job = seen
            show(job, events)
    except TimeoutError:
        stderr.print(f"Not finished after {timeout:g} s: job {job.id} is {job.status}, and goes on.")
        stderr.print(f"Keep waiting with `toque jobs wait {job.id}`.")
        return Outcome(job, EXIT_TIMED_OUT)
    except KeyboardInterrupt:
        stderr.print(f"\nStopped waiting; job {job.id} goes on. End it with `toque jobs cancel {job.id}`.")
        return Outcome(job, EXIT_INTERRUPTED)
    if job.error and job.error.message:
        stderr.print(visible(f"The job failed: {job.error.message} ({job.error.code})"))
    return Outcome(job, EXIT_CODES[job.status])


def _poll(
    client: OpenAI, job_id: str, timeout: float | None
) -> Iterator[tuple[FineTuningJob, list[FineTuningJobEvent]]]:
    """Yields the job and its new events about once a second, until the job has ended.

    Retries with back-off while the service is unreachable or busy.

    Raises:
        TimeoutError: the job has not ended within `timeout` seconds.
    """
    from openai import APIConnectionError, InternalServerError, RateLimitError  # noqa: PLC0415 - see connect

    deadline = math.inf if timeout is None else time.monotonic() + timeout
    newest: str | None = None
    pause = _POLL_SECONDS
    while True:
        patience = max(0.5, min(_REQUEST_SECONDS, deadline - time.monotonic()))
        jobs = client.with_options(max_retries=0, timeout=patience).fine_tuning.jobs
        try:
            # The job first, since a job that has ended has all its events.
            job = jobs.retrieve(job_id)
            events = _events_after(newest, jobs.list_events(job_id, limit=100))
        except (APIConnectionError, InternalServerError, RateLimitError) as error:
            if pause == _POLL_SECONDS:
                stderr.print(f"The service does not answer ({error.__cause__ or error}); trying again.")
            pause = min(pause * 2, _MAX_POLL_SECONDS)
        else:
            pause = _POLL_SECONDS
            newest = events[-1].id if events else newest
            yield job, events
            if job.status in EXIT_CODES:
                return
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        time.sleep(min(pause, remaining))


def _events_after(last: str | None, newest_first: Iterable[FineTuningJobEvent]) -> list[FineTuningJobEvent]:
    """Returns the events that are newer than the one with the id `last`, oldest first."""
    fresh = list(itertools.takewhile(lambda event: event.id != last, newest_first))
    return fresh[::-1]


class TrainingBar:
    """The job's log above a bar with step, loss and time left; just the log without a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            _TimeLeftColumn(),
            console=stderr,
            transient=True,
            disable=not stderr.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, loss="", finish=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, job: FineTuningJob, events: list[FineTuningJobEvent]) -> None:
        """Prints the events, and updates the bar."""
        for event in events:
            if event.type == "metrics":
                self._show_metrics(event.data)
            else:
                stderr.print(visible(event.message))
        self._progress.update(self._task, description=job.status, finish=job.estimated_finish)

    def _show_metrics(self, data: object) -> None:
        metrics = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
        loss = metrics.get("train_loss")
        self._progress.update(
            self._task,
            completed=metrics.get("step"),
            total=metrics.get("total_steps"),
            loss="" if loss is None else f"loss {loss:.3f}",
        )


class _TimeLeftColumn(ProgressColumn):
    """Shows the time left until the finish that the service expects."""

    def render(self, task: Task) -> Text:
        finish = task.fields["finish"]
        if finish is None:
            return Text("")
        return Text(f"{timedelta(seconds=max(0, round(finish - time.time())))} left")
