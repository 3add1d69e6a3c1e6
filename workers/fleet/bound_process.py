"""The process of a worker or an engine, bound to the Ray actor that starts it."""

from __future__ import annotations

import atexit
import signal
import subprocess
from collections.abc import Mapping, Sequence
from threading import Event, Thread
from typing import Literal

from app.cli.parent_death import bound_to_parent
from workers.processes import stop_group

ROLE = "TOQUE_FLEET_ROLE"
"""The variable by which such a process can be told from others on its machine."""


class BoundProcess:
    """A child process that never outlives its actor: by then, Ray may have given the actor's GPUs to another.

    Linux binds a child to the thread that starts it. Ray's threads come and go, so each child has its own.
    """

    def __init__(
        self,
        role: Literal["worker", "engine"],
        command: Sequence[str],
        environment: Mapping[str, str],
        stop_seconds: float,
    ) -> None:
        """`stop_seconds` is the time between SIGTERM and SIGKILL when the actor is told to end."""
        self._stop_seconds = stop_seconds
        self._started, self._ended = Event(), Event()
        self._process: subprocess.Popen[bytes] | None = None
        Thread(target=self._run, args=(command, {**environment, ROLE: role}), daemon=True).start()
        self._started.wait()
        atexit.register(self.stop)  # an actor that is asked to exit does; `ray stop` kills it

    def poll(self) -> int | None:
        """Returns its exit code, or None while it runs; -1 if it could not be started."""
        if not self._ended.is_set():
            return None
        return self._process.returncode if self._process else -1

    def wait(self) -> None:
        """Returns once it has ended."""
        self._ended.wait()

    def stop(self) -> None:
        """Terminates it with all that it started; does nothing if it has ended."""
        atexit.unregister(self.stop)
        if self._process is not None and self._process.poll() is None:
            stop_group(self._process, self._stop_seconds)

    def _run(self, command: Sequence[str], environment: dict[str, str]) -> None:
        try:
            self._process = subprocess.Popen(
                bound_to_parent(command, signal.SIGKILL),
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._started.set()
            self._process.wait()
        finally:
            self._started.set()
            self._ended.set()
