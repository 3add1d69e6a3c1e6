"""The folder in which a base model is prepared, which one process has at a time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

_LOOK_SECONDS = 0.2


@contextmanager
def workspace(target: Path, waiting: Callable[[], None]) -> Generator[Path]:
    """Yield a folder next to `target`, on the same disk, which no other process has meanwhile.

    What is left in it when the block ends is there again the next time.

    Args:
        target: where the base model will be.
        waiting: called again and again while another process has the folder; it may raise.
    """
    folder = target.with_name(f".{target.name}.partial")
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            while not _is_locked(descriptor):
                waiting()
                time.sleep(_LOOK_SECONDS)
            if _is_still(folder, descriptor):
                yield folder
                return
        finally:
            os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Lock the folder unless another process has it, and return whether this one does."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(folder: Path, descriptor: int) -> bool:
    """Return whether the folder was not deleted, and perhaps made anew, while this process waited."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
