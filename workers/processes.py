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
_BEHIND_SECONDS = 1.0
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent goes, even by SIGKILL.

    In a child of `multiprocessing` that was orphaned before it came this far, ends it at once.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)


def stop_group(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """Asks the child to end, then kills it and all that it started; it must lead its own process group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace_seconds)
    # Its own children are a moment behind it: they remove what the kernel would not.
    deadline = time.monotonic() + _BEHIND_SECONDS
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
