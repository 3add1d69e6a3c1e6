"""Named points at which a test may have a process die, as a power cut would.

`TOQUE_CRASH_AT=<point>:<file>` kills the process with SIGKILL the first time that it reaches the point, and
makes the file, so that the next process passes. Not set, a point costs a dictionary look-up.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path


def reach(point: str) -> None:
    """Dies here, if a test wants it so."""
    wanted, _, marker = os.environ.get("TOQUE_CRASH_AT", "").partition(":")
    if wanted != point:
        return
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
