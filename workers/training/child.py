"""The worker's side of its trainer process, which starts when needed and stays warm between jobs."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import msgspec
import psutil

from app.core.child_environment import child_environment
from workers.device import detect
from workers.process_memory import resident_bytes
from workers.training.protocol import (
    OUT_OF_MEMORY,
    RANK_DIED,
    Failed,
    Progress,
    Started,
    StopJob,
    TrainingSpec,
)

TRAINER = (sys.executable, "-m", "workers.training.trainer")
_NICENESS = 10
"""The kernel's nice value of a trainer that computes on the CPU: a tenth of what an engine gets while both
want it, so that who waits for an answer does not wait for a job."""
_VMSTAT = Path("/proc/vmstat")
_progress_decoder: msgspec.json.Decoder[Progress] = msgspec.json.Decoder(Progress)

log = logging.getLogger("toque.worker")


@dataclass(frozen=True, slots=True)
class Death:
    """How a trainer process that still had a job ended."""

    reason: str
    was_starved: bool
    """Whether the kernel probably killed it, or one of its ranks, for lack of memory."""
    ran_out_of_memory: bool
    """Whether it ended because one of its ranks ran out of memory."""
    has_begun: bool
    """Whether the job's model was loaded, so that batches were about to be computed."""
    had_others: bool
    """Whether the process had other jobs, too."""


@dataclass(slots=True)
class _Job:
    """A job that a process trains."""

    process: subprocess.Popen[bytes]
    is_alone: bool
    messages: SimpleQueue[Progress | Death] = field(default_factory=SimpleQueue[Progress | Death])
    has_begun: bool = False


class TrainerChild:
    """Runs at most one process of `command`, which trains a job, or several in turns on one base model.

    All methods may be called from any thread.
    """

    def __init__(self, command: Sequence[str], threads: int, most_jobs: int = 1) -> None:
        """With `most_jobs` above 1, the command must read `StopJob` requests while it trains."""
        self._command = command
        self._threads = threads or len(os.sched_getaffinity(0))
        self._most_jobs = most_jobs
        # The process dies with the thread that starts it: this one lives as long as the worker.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="trainer")
        self._process: subprocess.Popen[bytes] | None = None
        self._killed: subprocess.Popen[bytes] | None = None
        """The process that was killed last, which may not have died yet."""
        self._jobs: dict[str, _Job] = {}
        """By attempt."""
        self._changed = threading.Condition()
        """Guards the jobs, and is notified when one that waits for its turn may go on."""
        self._base: tuple[str, str] | None = None
        """Folder and quantization of the base model that the jobs have in common."""
        self._gpus = 1
        self._closed = False
        self._oom_kills = 0
        self._heard_at = math.inf
        self._silent_seconds = 0.0

    def train(
        self, spec: TrainingSpec, *, alone: bool = False, is_wanted: Callable[[], bool] = lambda: True
    ) -> Generator[Progress | Death]:
        """Train a job, and yield the trainer's messages; a `Death` is the last, if it dies.

        A job that cannot be trained beside those that are waits until they have ended: one that goes `alone`,
        on several GPUs, or on another base. There are no messages if it `is_wanted` no more by then.
        """
        with self._changed:
            self._changed.wait_for(lambda: not is_wanted() or self._has_room_for(spec, alone=alone))
            if self._closed or not is_wanted():
                return
            process = self._ready_for(spec)
            if self._closed:
                return
            job = self._jobs[spec.attempt] = _Job(process, alone)
            self._heard_at = time.monotonic()
            _write(process, spec)
        try:
            while not isinstance(said := job.messages.get(), Death):
                yield said
            yield said
        finally:
            with self._changed:
                del self._jobs[spec.attempt]
                if not self._jobs:
                    self._heard_at = math.inf
                self._changed.notify_all()

    def stop_job(self, attempt: str) -> None:
        """Ask the trainer to save a checkpoint of one job and send `Stopped`; it stays warm."""
        if self._most_jobs == 1:
            self.stop_all_jobs()
            return
        with self._changed:
            if (job := self._jobs.get(attempt)) is not None:
                _write(job.process, StopJob(attempt=attempt))
            self._changed.notify_all()

    def drop_job(self, attempt: str) -> None:
        """Train one job no further; the process is killed unless it may have others."""
        if self._most_jobs == 1:
            self.kill()
        else:
            self.stop_job(attempt)

    def stop_all_jobs(self) -> None:
        """Ask the trainer to save a checkpoint of each of its jobs and send `Stopped`; it stays warm."""
        with self._changed:
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()
            self._changed.notify_all()

    def kill_if_silent(self, seconds: float) -> None:
        """Kill a process that has a job and has sent no message for this many seconds."""
        if time.monotonic() - self._heard_at > seconds:
            self._silent_seconds = seconds
            self.kill()

    def memory_bytes(self) -> int:
        """The resident memory of this process and the trainer's, in bytes."""
        return resident_bytes((psutil.Process(), *self._ranks()))

    def kill(self) -> None:
        """Kill the process, leaving its jobs unfinished."""
        if self._process is not None:
            self._killed = self._process
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

    def _ranks(self) -> list[psutil.Process]:
        """The trainer's processes."""
        if self._process is None or self._process.poll() is not None:
            return []
        try:
            trainer = psutil.Process(self._process.pid)
            return [trainer, *trainer.children()]
        except psutil.Error:
            return []

    def _is_alive(self) -> bool:
        """Whether the process can be given a job."""
        process = self._process
        return process is not None and process is not self._killed and process.poll() is None

    def _has_room_for(self, spec: TrainingSpec, *, alone: bool) -> bool:
        """Whether the job can be begun now, beside those that the process has."""
        if not self._jobs:
            return True
        if not self._is_alive():  # its jobs have yet to hear it
            return False
        if alone or any(job.is_alone for job in self._jobs.values()):
            return False
        return spec.hyperparameters.gpus == self._gpus == 1 and self._base == _base_of(spec)

    def _ready_for(self, spec: TrainingSpec) -> subprocess.Popen[bytes]:
        """Return a process that can train the job; it is started if need be."""
        if spec.hyperparameters.gpus != self._gpus:
            self.stop()  # the number of its ranks is fixed
            self._gpus = spec.hyperparameters.gpus
        self._base = _base_of(spec)
        if self._process is None or not self._is_alive():
            self.stop()  # if it was killed, until its memory is free
            self._process = self._starter.submit(self._start).result()
        return self._process

    def _start(self) -> subprocess.Popen[bytes]:
        self._oom_kills, self._silent_seconds = _oom_kills(), 0.0
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(self._threads),
        )
        if detect().kind == "cpu":  # where an engine may compute on the same cores
            niceness = max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0))  # only root may lower it
            os.setpriority(os.PRIO_PROCESS, process.pid, niceness)
        threading.Thread(target=self._read, args=(process,), name="messages", daemon=True).start()
        return process

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """Pass on what the process says, until it has died."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdout as messages:
                for line in messages:
                    if line.endswith(b"\n"):  # else the trainer died while writing it
                        self._pass_on(process, _progress_decoder.decode(line))
        except msgspec.DecodeError:
            log.exception("The trainer is killed, because what it said is not a message")
            process.kill()
        code = process.wait()
        with self._changed:
            with suppress(BrokenPipeError):
                process.stdin.close()
            jobs = [job for job in self._jobs.values() if job.process is process]
            for job in jobs:
                job.messages.put(self._death(code, job, had_others=len(jobs) > 1))

    def _pass_on(self, process: subprocess.Popen[bytes], progress: Progress) -> None:
        with self._changed:
            if self._jobs:
                self._heard_at = time.monotonic()
            if isinstance(progress, Failed) and self._gpus > 1:
                self.stop()  # its other ranks may wait for each other
            job = self._jobs.get(progress.attempt or next(iter(self._jobs), ""))
            if job is not None and job.process is process:
                job.has_begun |= isinstance(progress, Started)
                job.messages.put(progress)

    def _death(self, code: int, job: _Job, *, had_others: bool) -> Death:
        if self._silent_seconds:
            reason = f"it said nothing for {self._silent_seconds:.0f} s"
        elif code == RANK_DIED:
            reason = "one of its ranks died"
        else:
            reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        was_starved = code in (-signal.SIGKILL, RANK_DIED) and _oom_kills() > self._oom_kills
        return Death(reason, was_starved, code == OUT_OF_MEMORY, job.has_begun, had_others)


def _write(process: subprocess.Popen[bytes], request: TrainingSpec | StopJob) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError, ValueError):  # it has died (and is closed), as its jobs will hear
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        process.stdin.flush()


def _base_of(spec: TrainingSpec) -> tuple[str, str]:
    return spec.base_model_dir, spec.hyperparameters.quantization


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
