"""Stops a child process with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress

_DESCENDANT_SECONDS = 1.0


def stop_group(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """Terminate a process that leads its process group, then kill it and everything that it started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace_seconds)
    # Its own children take a moment longer: they remove what the kernel would leave behind.
    deadline = time.monotonic() + _DESCENDANT_SECONDS
    while _group_exists(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
