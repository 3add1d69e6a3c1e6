"""The trainer's work in the job's trace: loading, and one span for each step."""

from __future__ import annotations

import time

from app.core.tracing import record_span
from workers.training.protocol import Progress, Started, Step


class ProgressSpans:
    """Records what the trainer has reported, from one message to the next: it has no tracer of its own."""

    def __init__(self) -> None:
        self._since = time.time_ns()

    def record(self, progress: Progress) -> None:
        """Record what ends with this message."""
        match progress:
            case Started():
                record_span("load", self._since, {"toque.device": progress.device})
            case Step():
                of_step = {"toque.step": progress.metrics.step, "toque.tokens": progress.tokens}
                record_span("step", self._since, of_step)
            case _:
                return
        self._since = time.time_ns()
