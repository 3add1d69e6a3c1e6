"""Watching a job until it ends: what is new at each look, and a bar on stderr."""

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

_LOOK_SECONDS = 1.0
_LONGEST_PAUSE = 10.0
_REQUEST_SECONDS = 30.0

Show = Callable[["FineTuningJob", "list[FineTuningJobEvent]"], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The job as it was last seen, and the command's exit code."""

    job: FineTuningJob
    exit_code: int


def follow(client: OpenAI, job: FineTuningJob, timeout: float | None, show: Show) -> Outcome:
    """Gives `show` the job and its new events, oldest first, until the job ends, time is up, or Ctrl-C."""
    try:
        for seen, events in _look(client, job.id, timeout):
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


def _look(
    client: OpenAI, job_id: str, timeout: float | None
) -> Iterator[tuple[FineTuningJob, list[FineTuningJobEvent]]]:
    """The job and its new events, about once a second, until it has ended.

    A service that cannot be reached, or says that it is busy, is asked again, less and less often.

    Raises:
        TimeoutError: the job has not ended by then.
    """
    from openai import APIConnectionError, InternalServerError, RateLimitError  # noqa: PLC0415 - see connect

    deadline = math.inf if timeout is None else time.monotonic() + timeout
    newest: str | None = None
    pause = _LOOK_SECONDS
    while True:
        patience = max(0.5, min(_REQUEST_SECONDS, deadline - time.monotonic()))
        jobs = client.with_options(max_retries=0, timeout=patience).fine_tuning.jobs
        try:
            # The job first: a job that has ended has all its events.
            job = jobs.retrieve(job_id)
            events = _events_after(newest, jobs.list_events(job_id, limit=100))
        except (APIConnectionError, InternalServerError, RateLimitError) as error:
            if pause == _LOOK_SECONDS:
                stderr.print(f"The service does not answer ({error.__cause__ or error}); trying again.")
            pause = min(pause * 2, _LONGEST_PAUSE)
        else:
            pause = _LOOK_SECONDS
            newest = events[-1].id if events else newest
            yield job, events
            if job.status in EXIT_CODES:
                return
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        time.sleep(min(pause, remaining))


def _events_after(last: str | None, newest_first: Iterable[FineTuningJobEvent]) -> list[FineTuningJobEvent]:
    """Oldest first."""
    fresh = list(itertools.takewhile(lambda event: event.id != last, newest_first))
    return fresh[::-1]


class TrainingBar:
    """The job's log, above a bar with step, loss and time left; without a terminal, the log alone."""

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
        """Brings the bar up to date."""
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
    """Until the finish that the service expects."""

    def render(self, task: Task) -> Text:
        finish = task.fields["finish"]
        if finish is None:
            return Text("")
        return Text(f"{timedelta(seconds=max(0, round(finish - time.time())))} left")
