"""The engine leaves cores to whoever else computes on the machine."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.waiting import wait_until
from workers.inference.spare_cores import SpareCores


def test_cores_that_others_use_are_not_spare() -> None:
    cores = len(os.sched_getaffinity(0))
    spare = SpareCores(most=cores)
    assert spare.count() == cores, "nothing is known yet"
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        wait_until(lambda: spare.count() == 1, "every core is taken", seconds=30)
    finally:
        for process in burning:
            process.kill()
            process.wait()
