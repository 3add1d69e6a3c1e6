"""The real fleet, whose real workers have the stand-in as their trainer.

`python -m benchmarks.fleet.stand_in_fleet --address HOST:PORT` is the fleet; with `worker`, it is a worker.
"""

from __future__ import annotations

import sys

from benchmarks.fleet.trainer import TRAINER
from workers.fleet.__main__ import main as run_fleet
from workers.training.worker import main as run_worker

COMMAND = [sys.executable, "-m", "benchmarks.fleet.stand_in_fleet"]
WORKER = [*COMMAND, "worker", "--until-idle"]
ENGINE = ["sleep", "infinity"]
"""The fleet starts one to compare the models with, which have nothing that could be compared."""

if __name__ == "__main__":
    if sys.argv[1] != "worker":
        raise SystemExit(run_fleet(sys.argv[1:], WORKER, ENGINE))
    run_worker(TRAINER, sys.argv[2:])
