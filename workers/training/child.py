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

from app.core.child_environment import child_environment
from workers.device import detect
from workers.training.protocol import OUT_OF_MEMORY, RANK_DIED, Failed, Progress, Started, TrainingSpec

TRAINER = (sys.executable, "-m", "workers.training.trainer")
_NICENESS = 10
"""The kernel's nice value of a trainer that computes on the CPU: a tenth of what an engine gets while both
want it, so that who waits for an answer does not wait for a job."""
_VMSTAT = Path("/proc/vmstat")
_progress_decoder: msgspec.json.Decoder[Progress] = msgspec.json.Decoder(Progress)


class TrainerChild:
    """Runs at most one process of `command`. Start it from the main thread: it dies with that thread."""

    def __init__(self, command: Sequence[str], threads: int) -> None:
        self._command = command
        self._threads = threads or len(os.sched_getaffinity(0))
        self._process: subprocess.Popen[bytes] | None = None
        self._gpus = 1
        self._closed = False
        self._oom_kills = 0
        self._has_begun = False
        self._heard_at = math.inf
        self._silent_seconds = 0.0

    def train(self, spec: TrainingSpec) -> Generator[Progress]:
        """Train a job, and yield the trainer's messages; they end early if the trainer dies."""
        if spec.hyperparameters.gpus != self._gpus:
            self.stop()  # the number of its ranks is fixed
            self._gpus = spec.hyperparameters.gpus
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        if self._closed:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        self._heard_at, self._has_begun = time.monotonic(), False
        try:
            process.stdin.write(msgspec.json.encode(spec) + b"\n")
            process.stdin.flush()
            for line in process.stdout:
                self._heard_at = time.monotonic()
                if line.endswith(b"\n"):  # else the trainer died while writing it
                    progress = _progress_decoder.decode(line)
                    self._has_begun |= isinstance(progress, Started)
                    if isinstance(progress, Failed) and spec.hyperparameters.gpus > 1:
                        self.stop()  # its other ranks may wait for each other
                    yield progress
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
        code = self._exit_code
        if code is None:
            return "unknown"
        if code == RANK_DIED:
            return "one of its ranks died"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    @property
    def was_starved(self) -> bool:
        """Whether the kernel probably killed the last process, or one of its ranks, for lack of memory."""
        return self._exit_code in (-signal.SIGKILL, RANK_DIED) and _oom_kills() > self._oom_kills

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether the last process ended because one of its ranks ran out of memory."""
        return self._exit_code == OUT_OF_MEMORY

    @property
    def has_begun(self) -> bool:
        """Whether the newest job's model was loaded, so that batches were about to be computed."""
        return self._has_begun

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
        """The resident memory of this process and the trainer's, in bytes."""
        total = 0
        for process in (psutil.Process(), *self._ranks()):
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def kill(self) -> None:
        """Kill the process, leaving its job unfinished; callable from any thread."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """Kill the process and wait until its memory is free; the next job starts another process."""
        ranks = self._ranks()
        self.kill()
        if self._process is not None:
            self._process.wait()
        psutil.wait_procs(ranks)  # they die with it

    def close(self) -> None:
        """Kill the process for good: no more jobs are trained."""
        self._closed = True
        self.stop()

    @property
    def _exit_code(self) -> int | None:
        return self._process.poll() if self._process else None

    def _ranks(self) -> list[psutil.Process]:
        """The trainer's processes."""
        if self._process is None:
            return []
        try:
            trainer = psutil.Process(self._process.pid)
            return [trainer, *trainer.children()]
        except psutil.Error:
            return []

    def _start(self) -> subprocess.Popen[bytes]:
        self._oom_kills, self._silent_seconds = _oom_kills(), 0.0
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(self._threads),
        )
        if detect().kind == "cpu":  # where an engine may compute on the same cores
            niceness = max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0))  # only root may lower it
            os.setpriority(os.PRIO_PROCESS, self._process.pid, niceness)
        return self._process


def _oom_kills() -> int:
    """The number of out-of-memory kills since boot (`oom_kill` in /proc/vmstat, from Linux 4.13)."""
    try:
        counters = _VMSTAT.read_text("ascii").split()
    except OSError:
        return 0
    return int(counters[counters.index("oom_kill") + 1]) if "oom_kill" in counters else 0


def _environment(threads: int) -> dict[str, str]:
    """This process's environment without settings and secrets: it needs neither database nor keys."""
    return child_environment(("TOQUE_CRASH_AT",)) | {"OMP_NUM_THREADS": str(threads)}
