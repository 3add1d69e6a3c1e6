"""Ends a process with its parent (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from multiprocessing import parent_process

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even by SIGKILL.

    A child of `multiprocessing` whose parent has died already exits at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)
