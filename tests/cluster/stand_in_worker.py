"""A worker whose trainer learns nothing. It writes into the file `FLEET_LEDGER` when it held which GPUs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from benchmarks.soak.worker import TRAINER
from workers.training.worker import main


def note(event: str) -> None:
    line = {
        "at": time.time(),
        "event": event,
        "pid": os.getpid(),
        "node": os.environ["FLEET_NODE"],
        "gpus": [int(gpu) for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",")],
    }
    with Path(os.environ["FLEET_LEDGER"]).open("a") as ledger:
        ledger.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    note("begins")
    main(TRAINER, sys.argv[1:])
    note("ends")
