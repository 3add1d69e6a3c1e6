"""Child processes that never outlive their parent (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from contextlib import suppress
from multiprocessing import parent_process

_PR_SET_PDEATHSIG = 1
_DESCENDANT_SECONDS = 1.0
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even by SIGKILL.

    A child of `multiprocessing` whose parent has died already exits at once.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)


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
