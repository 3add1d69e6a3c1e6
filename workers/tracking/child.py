"""Keeps the process that sends metrics to trackers running beside a worker."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

from app.core.child_environment import DATABASE, TRACKERS, child_environment
from workers.processes import stop_group

log = logging.getLogger("toque.worker")

_RESTART_SECONDS = 10.0
_GRACE_SECONDS = 5.0
"""How long the process may take to send what is left, when the worker ends."""


class TrackingChild:
    """Runs `python -m workers.tracking` while a `with` block runs, and starts it again if it dies.

    It is started by a thread that lives as long, because the kernel ends it with that thread.
    """

    def __init__(self, tracker: str) -> None:
        self._secrets = (*DATABASE, *TRACKERS[tracker])
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_running, name="tracking", daemon=True)

    def __enter__(self) -> TrackingChild:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _keep_running(self) -> None:
        while not self._ended.is_set():
            try:
                process = self._start()
            except OSError as error:
                log.warning("the process that sends metrics to the tracker cannot be started yet: %s", error)
            else:
                while process.poll() is None and not self._ended.wait(1.0):
                    pass
                if process.poll() is not None:
                    log.warning("the process that sends metrics to the tracker has died; it is started again")
                stop_group(process, _GRACE_SECONDS)  # with what the trackers' libraries have started
            self._ended.wait(_RESTART_SECONDS)

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "workers.tracking"],
            env=child_environment(self._secrets, has_settings=True),
            start_new_session=True,
        )
