"""The folder in which a base model is prepared, which one process has at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def workspace(target: Path, say: Callable[[str], None]) -> Generator[Path]:
    """Yield a folder next to `target`, on the same disk; another process that wants it waits.

    What is left in it when the block ends is there again the next time.
    """
    folder = target.with_name(f".{target.name}.partial")
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _lock(descriptor, lambda: say(f"{target.name}: another process prepares it; waiting"))
            if _is_still(folder, descriptor):
                yield folder
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, on_wait: Callable[[], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_still(folder: Path, descriptor: int) -> bool:
    """Return whether the folder was not deleted, and perhaps made anew, while this process waited."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
