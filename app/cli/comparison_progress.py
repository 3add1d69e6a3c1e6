"""Follows a comparison until it ends, with a progress bar."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.cli.job_progress import EXIT_CODES, EXIT_INTERRUPTED, EXIT_TIMED_OUT
from app.cli.output import stderr
from app.core.control_characters import visible

if TYPE_CHECKING:
    from openai import OpenAI

_POLL_SECONDS = 1.0
_MAX_POLL_SECONDS = 10.0
_REQUEST_SECONDS = 30.0


def await_comparison(
    client: OpenAI, comparison: dict[str, Any], timeout: float | None
) -> tuple[dict[str, Any], int]:
    """Waits for the comparison; returns its last known state, and the command's exit code."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task(comparison["status"])
        try:
            while comparison["status"] not in EXIT_CODES:
                done, total = comparison["progress"]["done"], comparison["progress"]["total"]
                state = "grading" if done == total else comparison["status"]
                progress.update(task, description=state, completed=done, total=total)
                if (left := deadline - time.monotonic()) <= 0:
                    stderr.print(f"Not finished after {timeout:g} s: {comparison['id']} goes on.")
                    stderr.print(f"Keep waiting with `toque compare wait {comparison['id']}`.")
                    return comparison, EXIT_TIMED_OUT
                time.sleep(min(_POLL_SECONDS, left))
                comparison = _poll(client, comparison, deadline)
        except KeyboardInterrupt:
            stderr.print(f"\nStopped waiting; {comparison['id']} goes on.")
            return comparison, EXIT_INTERRUPTED
    if comparison["error"]:
        error = comparison["error"]
        stderr.print(visible(f"The comparison failed: {error['message']} ({error['code']})"))
    return comparison, EXIT_CODES[comparison["status"]]


def _poll(client: OpenAI, comparison: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Returns the comparison's current state; retries with back-off while the service is unreachable."""
    from openai import APIConnectionError, InternalServerError, RateLimitError  # noqa: PLC0415 - see connect

    pause = _POLL_SECONDS
    while True:
        patience = max(0.5, min(_REQUEST_SECONDS, deadline - time.monotonic()))
        try:
            hasty = client.with_options(max_retries=0, timeout=patience)
            path = f"/comparisons/{quote(comparison['id'], safe='')}"
            return cast("dict[str, Any]", hasty.get(path, cast_to=object))
        except (APIConnectionError, InternalServerError, RateLimitError) as error:
            if pause == _POLL_SECONDS:
                stderr.print(f"The service does not answer ({error.__cause__ or error}); trying again.")
            if deadline <= time.monotonic():
                return comparison
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(pause * 2, _MAX_POLL_SECONDS)
