"""Reading a process line by line, and knowing when one is gone, without waiting for a clock."""

from __future__ import annotations

import os
import select
import subprocess


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Lines of its output, up to and with the first that has the text in it."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"ended without {text!r}:\n{seen}")


def read_rest(process: subprocess.Popen[str]) -> str:
    """What it still says until it ends. (`communicate` would lose what is already in the buffer.)"""
    assert process.stdout is not None
    return process.stdout.read()


class Watched:
    """A process that is alive now, told apart from any later one with the same number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.descriptor = os.pidfd_open(pid)

    def ends(self, within_seconds: float = 20) -> bool:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        ended = bool(poll.poll(within_seconds * 1000))
        os.close(self.descriptor)
        return ended


def has_ended(pid: int) -> bool:
    """Whether a process that was there is gone, or goes soon."""
    try:
        return Watched(pid).ends()
    except ProcessLookupError:
        return True
