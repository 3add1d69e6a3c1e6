"""The worker of a `starved_trainer`, for the same arguments.

COUNTER stands for /proc/vmstat: no test can make a kernel count there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from workers.training import child
from workers.training.worker import main

if __name__ == "__main__":
    if len(sys.argv) > 2:
        child._VMSTAT = Path(sys.argv[2])  # pyright: ignore[reportPrivateUsage]
    main([sys.executable, str(Path(__file__).with_name("starved_trainer.py")), *sys.argv[1:]])
