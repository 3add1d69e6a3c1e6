"""How a trainer process talks to its worker: jobs on stdin, progress on stdout, SIGTERM to stop them all."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from types import FrameType

import msgspec

from workers.training.protocol import Progress, StopCause, StopJob, TrainingSpec, Working

Send = Callable[[Progress], None]
_KEEP_ALIVE_SECONDS = 10.0


class StopRequest:
    """A request to stop: of all jobs, which SIGTERM makes, or of some. Jobs check for it between steps."""

    def __init__(self) -> None:
        self.made = False
        self.causes: dict[str, StopCause] = {}
        """Why an attempt is to stop that is to stop alone."""
        signal.signal(signal.SIGTERM, self._make)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the worker has it blocked

    def _make(self, _number: int, _frame: FrameType | None) -> None:
        self.made = True


class JobStop:
    """What the training of one job sees of the request to stop."""

    def __init__(self, request: StopRequest, attempt: str) -> None:
        self._request = request
        self._attempt = attempt

    @property
    def made(self) -> bool:
        """Whether the job is to stop."""
        return self._request.made or self._attempt in self._request.causes

    @property
    def cause(self) -> StopCause:
        """Why the job is to stop."""
        return self._request.causes.get(self._attempt, "request")


class Inbox:
    """What the worker writes to stdin: the jobs to train, and requests to stop one of them."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._specs: SimpleQueue[TrainingSpec | None] = SimpleQueue()
        self._has_ended = False
        Thread(target=self._read, name="inbox", daemon=True).start()

    def next_spec(self, *, wait: bool) -> TrainingSpec | None:
        """Return the next job, or None: if there is none now, or with `wait` if there will be none."""
        if self._has_ended:
            return None
        try:
            spec = self._specs.get(block=wait)
        except Empty:
            return None
        self._has_ended = spec is None
        return spec

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            match msgspec.json.decode(line, type=TrainingSpec | StopJob):
                case StopJob(attempt=attempt):
                    self._stop.causes[attempt] = "request"
                case spec:
                    self._specs.put(spec)
        self._specs.put(None)


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
