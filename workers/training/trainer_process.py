"""How a trainer process talks to its worker: progress on stdout, and SIGTERM as the request to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

import msgspec

from workers.training.protocol import Progress, Working

Send = Callable[[Progress], None]
_KEEP_ALIVE_SECONDS = 10.0


class StopRequest:
    """A request to stop, which SIGTERM makes; the trainer checks for it between steps."""

    def __init__(self) -> None:
        self.made = False
        signal.signal(signal.SIGTERM, self._make)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the worker has it blocked

    def _make(self, _number: int, _frame: FrameType | None) -> None:
        self.made = True


class KeepAlive:
    """Tells the worker from time to time that work goes on, if called often enough."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._sent_at = time.monotonic()

    def __call__(self) -> None:
        """Send `Working` if the last one was long enough ago."""
        if time.monotonic() - self._sent_at > _KEEP_ALIVE_SECONDS:
            self._send(Working())
            self._sent_at = time.monotonic()


def claim_stdout() -> Send:
    """Reserve stdout for progress; whatever a library prints goes to stderr."""
    progress = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def send(message: Progress) -> None:
        progress.write(msgspec.json.encode(message) + b"\n")

    return send
