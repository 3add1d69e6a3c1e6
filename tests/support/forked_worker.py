"""Training workers forked from a server that has imported what they and their trainers need.

To import torch and PEFT takes longer than most of what tests train. A worker from here also forks its
trainer, and that its other ranks. Otherwise all are what `python -m workers.training.worker` makes of them:
the trainer is the child of the worker, speaks through its pipes, and dies with it.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
import time
import traceback
from multiprocessing import process
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from tests.support.held_trainer import observe_requests
from tests.support.starved_trainer import starve
from workers.training import child, ranks, trainer, training_loop, worker
from workers.training.protocol import TrainingSpec
from workers.training.trainer_process import Inbox

HOLD_AT = "HOLD_AT"
"""A rank of a trainer, a point of `workers.crash_points`, how often it comes there until it waits; a file."""
FIRST_JOBS = "FIRST_JOBS"
"""With how many jobs the first trainer begins, and a file."""
TRAINER_ROOM = "TRAINER_ROOM"
"""How many tokens a trainer has room for; then, if it is killed for more, what stands for /proc/vmstat."""
TRAINER_NAME = "trainer"
"""What the forked trainer is called in /proc, where its command line is the server's."""

_inherited: list[TextIO] = []
_place = SimpleNamespace(rank=0)
"""Where this process stands among those that train together."""


def run(environment: dict[str, str], log: str) -> None:
    """Be a worker in this environment, with its log at the end of a file."""
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 2)
    process._parent_process = None  # what `die_with_parent` must not compare with: the server is the parent
    child.subprocess = ranks.subprocess = SimpleNamespace(
        Popen=ForkedTrainer, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL
    )
    if counter := environment.get(TRAINER_ROOM, "").partition(":")[2]:
        child._VMSTAT = Path(counter)  # pyright: ignore[reportPrivateUsage]
    worker.main()


def hold_at(rank: int, held: str, times: int, marker: Path) -> None:
    """Have the trainer wait at this point until it is asked to stop, or the test writes into the file.

    That is once, unless the test removes the file, since the trainer makes it first.
    """
    reach = training_loop.reach
    requests = observe_requests(trainer)
    reached = itertools.count(1)

    def is_released() -> bool:
        try:
            return marker.stat().st_size > 0
        except FileNotFoundError:
            return False

    def reach_and_wait(point: str) -> None:
        reach(point)
        if _place.rank == rank and point == held and next(reached) == times and not marker.exists():
            marker.touch()
            while not (requests[0].made or requests[0].causes or is_released()):
                time.sleep(0.01)

    training_loop.reach = reach_and_wait


def begin_with(jobs: int, marker: Path) -> None:
    """Have the trainer begin once it has so many jobs; only the first, since it makes the file."""

    class FullInbox(Inbox):
        def next_spec(self, *, wait: bool) -> TrainingSpec | None:
            while not marker.exists():
                if self._specs.qsize() == jobs:
                    marker.touch()
                time.sleep(0.01)
            return super().next_spec(wait=wait)

    trainer.Inbox = FullInbox


class ForkedTrainer(subprocess.Popen[bytes]):
    """A trainer, or one of its ranks, that this process forks instead of executing a command."""

    def _execute_child(
        self,
        args: object,
        executable: object,
        preexec_fn: object,
        close_fds: object,
        pass_fds: object,
        cwd: object,
        env: dict[str, str],
        startupinfo: object,
        creationflags: object,
        shell: object,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        *rest: Any,
    ) -> None:
        gc.freeze()  # or the trainer might collect, and close, what has the number of a file that it opens
        self.pid = os.fork()
        if self.pid == 0:
            _be_trainer(p2cread, c2pwrite, env)
        gc.unfreeze()
        self._child_created = True
        os.close(p2cread)
        os.close(c2pwrite)


def _be_trainer(stdin: int, stdout: int, environment: dict[str, str]) -> None:
    code = 1
    try:
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        # The lock of the old one may be held by a thread that is not in this process: it must not be closed.
        _inherited.append(sys.stdin)
        sys.stdin = os.fdopen(0, closefd=False)
        os.environ.clear()
        os.environ.update(environment)
        Path("/proc/self/comm").write_text(TRAINER_NAME)
        _place.rank = json.loads(environment.get("TOQUE_RANK", '{"rank": 0}'))["rank"]
        # A rank inherits what its trainer was told.
        if held := os.environ.pop(HOLD_AT, None):
            rank, point, times, marker = held.split(":", 3)
            hold_at(int(rank), point, int(times), Path(marker))
        if first := os.environ.pop(FIRST_JOBS, None):
            jobs, marker = first.split(":", 1)
            begin_with(int(jobs), Path(marker))
        if room := os.environ.pop(TRAINER_ROOM, None):
            tokens, _, counter = room.partition(":")
            starve(int(tokens), Path(counter) if counter else None)
        trainer.main()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
