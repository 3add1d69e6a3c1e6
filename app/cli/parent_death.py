"""Ties a child to its parent: `python -m app.cli.parent_death PARENT COMMAND…` runs the command, which gets
SIGTERM when its parent dies, even by SIGKILL. Linux only; elsewhere it just runs the command.

A program of its own rather than `preexec_fn`, which is not safe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # prctl(2); the setting outlives exec


def bound_to_parent(command: Sequence[str]) -> list[str]:
    """The command, tied to the process that starts it (to its main thread, to be exact)."""
    return [sys.executable, "-P", "-m", "app.cli.parent_death", str(os.getpid()), *command]


def main() -> None:
    """Ties this process and becomes the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the parent is gone")
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main()
