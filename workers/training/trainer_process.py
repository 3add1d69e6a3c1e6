"""What makes a process a trainer: progress on its stdout, and SIGTERM as the wish that it stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

import msgspec

from workers.training.protocol import Progress

Send = Callable[[Progress], None]


class StopRequest:
    """Set by SIGTERM; looked at between steps."""

    def __init__(self) -> None:
        self.made = False
        signal.signal(signal.SIGTERM, self._make)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the worker has it blocked

    def _make(self, _number: int, _frame: FrameType | None) -> None:
        self.made = True


def claim_stdout() -> Send:
    """Keep stdout for progress alone: whatever a library prints goes to stderr."""
    progress = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def send(message: Progress) -> None:
        progress.write(msgspec.json.encode(message) + b"\n")

    return send
