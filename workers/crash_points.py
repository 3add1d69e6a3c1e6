"""Named points at which a test can have a process die, as in a power cut.

`TOQUE_CRASH_AT=<point>:<file>` kills the process with SIGKILL the first time that it reaches the point, and
creates the file, so that the next process passes. If the variable is not set, a point costs a dictionary
look-up.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path


def reach(point: str) -> None:
    """Kill this process if a test has asked for it at this point."""
    wanted, _, marker = os.environ.get("TOQUE_CRASH_AT", "").partition(":")
    if wanted != point:
        return
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
