"""Runs a command that ends when its parent dies: `python -m app.cli.parent_death PARENT SIGNAL COMMAND…`.

Linux sends the command the signal even if the parent is killed; elsewhere the command just runs. This is a
program of its own because `preexec_fn` is not safe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # prctl(2); the setting outlives exec


def bound_to_parent(command: Sequence[str], number: signal.Signals = signal.SIGTERM) -> list[str]:
    """Returns the command line that binds a command to the thread that starts it, and so to this process.

    The command gets the signal `number` when the thread ends.
    """
    module = [sys.executable, "-P", "-m", "app.cli.parent_death"]
    return [*module, str(os.getpid()), str(int(number)), *command]


def main() -> None:
    """Binds this process to its parent, then becomes the command."""
    parent, number, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != int(parent):
        sys.exit("the parent is gone")
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main()
