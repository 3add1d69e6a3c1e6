"""The worker's side of its trainer process, which starts when needed and stays warm between jobs."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from workers.training.protocol import Progress, TrainingSpec

TRAINER = (sys.executable, "-m", "workers.training.trainer")
_VMSTAT = Path("/proc/vmstat")
_progress_decoder: msgspec.json.Decoder[Progress] = msgspec.json.Decoder(Progress)


class TrainerChild:
    """Runs at most one process of `command`. Start it from the main thread: it dies with that thread."""

    def __init__(self, command: Sequence[str], threads: int) -> None:
        self._command = command
        self._threads = threads or len(os.sched_getaffinity(0))
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._oom_kills = 0
        self._heard_at = math.inf
        self._silent_seconds = 0.0

    def train(self, spec: TrainingSpec) -> Generator[Progress]:
        """Train a job, and yield the trainer's messages; they end early if the trainer dies."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        if self._closed:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        self._heard_at = time.monotonic()
        try:
            process.stdin.write(msgspec.json.encode(spec) + b"\n")
            process.stdin.flush()
            for line in process.stdout:
                self._heard_at = time.monotonic()
                if line.endswith(b"\n"):  # else the trainer died while writing it
                    yield _progress_decoder.decode(line)
            process.wait()
        except BrokenPipeError:
            return
        finally:
            self._heard_at = math.inf

    @property
    def exit_reason(self) -> str:
        """A description of how the last process ended."""
        if self._silent_seconds:
            return f"it said nothing for {self._silent_seconds:.0f} s"
        code = self._process.poll() if self._process else None
        if code is None:
            return "unknown"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    @property
    def was_starved(self) -> bool:
        """Whether the kernel probably killed the last process for lack of memory."""
        killed = self._process is not None and self._process.poll() == -signal.SIGKILL
        return killed and _oom_kills() > self._oom_kills

    def kill_if_silent(self, seconds: float) -> None:
        """Kill a process that has a job and has sent no message for so long; callable from any thread."""
        if time.monotonic() - self._heard_at > seconds:
            self._silent_seconds = seconds
            self.kill()

    def ask_to_stop(self) -> None:
        """Have the trainer save a checkpoint and send `Stopped`; it stays warm. Callable from any thread."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def memory_bytes(self) -> int:
        """The resident memory of this process and the trainer, in bytes."""
        total = psutil.Process().memory_info().rss
        with suppress(psutil.Error):
            if self._process is not None:
                total += psutil.Process(self._process.pid).memory_info().rss
        return total

    def kill(self) -> None:
        """Kill the process, leaving its job unfinished; callable from any thread."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """Kill the process and wait until its memory is free; the next job starts another process."""
        self.kill()
        if self._process is not None:
            self._process.wait()

    def close(self) -> None:
        """Kill the process for good: no more jobs are trained."""
        self._closed = True
        self.stop()

    def _start(self) -> subprocess.Popen[bytes]:
        self._oom_kills, self._silent_seconds = _oom_kills(), 0.0
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(self._threads),
        )
        return self._process


def _oom_kills() -> int:
    """The number of out-of-memory kills since boot (`oom_kill` in /proc/vmstat, from Linux 4.13)."""
    try:
        counters = _VMSTAT.read_text("ascii").split()
    except OSError:
        return 0
    return int(counters[counters.index("oom_kill") + 1]) if "oom_kill" in counters else 0


def _environment(threads: int) -> dict[str, str]:
    """This process's environment without the settings: the trainer needs neither database nor keys."""
    kept = ("TOQUE_CRASH_AT",)
    plain = {
        name: value for name, value in os.environ.items() if name in kept or not name.startswith("TOQUE_")
    }
    return plain | {"OMP_NUM_THREADS": str(threads)}
