"""Chaos: a signal to a process drawn by lot, again and again; the frozen ones wake up after a while."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from signal import SIGCONT, SIGINT, SIGKILL, SIGQUIT, SIGSTOP, SIGTERM, Signals

import psutil

PAUSE_SECONDS = (0.6, 2.0)
FREEZE_SECONDS = (0.5, 6.0)
"""Seconds that a process stays frozen: up to twice the lease, and longer than a customer waits."""


@dataclass(frozen=True, slots=True)
class Blow:
    """A signal to a kind of process, and how often it is drawn."""

    kind: str
    signal: Signals
    weight: int


_DEPLOYMENT = (
    Blow("worker", SIGKILL, 6),
    Blow("worker", SIGTERM, 3),
    Blow("worker", SIGSTOP, 3),
    Blow("trainer", SIGKILL, 4),
    Blow("trainer", SIGTERM, 2),
    Blow("trainer", SIGSTOP, 2),
    Blow("api", SIGKILL, 4),
    Blow("api", SIGTERM, 2),
    Blow("api", SIGSTOP, 3),
)
_SERVER = (
    Blow("database", SIGQUIT, 1),  # an immediate shutdown: its next start is crash recovery
    Blow("database", SIGKILL, 1),
    Blow("database", SIGINT, 1),
    Blow("connection", SIGKILL, 1),  # the server ends every other connection and recovers by itself
    Blow("connection", SIGTERM, 3),
    Blow("connection", SIGSTOP, 1),
)


Find = Callable[[str], list[psutil.Process]]
"""Returns the running processes of a kind."""


class Chaos:
    """Strikes at the deployment, and at the database's server where there is one."""

    def __init__(self, find: Find, find_server: Find | None) -> None:
        self._draws = [(find, blow) for blow in _DEPLOYMENT]
        if find_server is not None:
            self._draws += [(find_server, blow) for blow in _SERVER]
        self._frozen: list[tuple[float, psutil.Process]] = []
        self.blows: Counter[str] = Counter()
        """Number of blows by kind and signal."""

    @contextmanager
    def reigning(self) -> Generator[None]:
        """Strikes until the block ends, then wakes whatever it froze."""
        ended = threading.Event()
        thread = threading.Thread(target=self._reign, args=[ended], name="chaos")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _reign(self, ended: threading.Event) -> None:
        next_blow = 0.0
        while not ended.wait(0.05):
            now = time.monotonic()
            self._wake(now)
            if now >= next_blow:
                self._strike()
                next_blow = now + random.uniform(*PAUSE_SECONDS)
        self._wake(math.inf)

    def _strike(self) -> None:
        find, blow = random.choices(self._draws, [blow.weight for _, blow in self._draws])[0]
        targets = find(blow.kind)
        if not targets:
            return
        target = random.choice(targets)
        with suppress(psutil.Error):
            target.send_signal(blow.signal)
            self.blows[f"{blow.kind} {blow.signal.name}"] += 1
            if blow.signal == SIGSTOP:
                self._frozen.append((time.monotonic() + random.uniform(*FREEZE_SECONDS), target))

    def _wake(self, now: float) -> None:
        for until, process in self._frozen:
            if until <= now:
                with suppress(psutil.Error):
                    process.send_signal(SIGCONT)
        self._frozen = [pair for pair in self._frozen if pair[0] > now]
