"""Runs the real worker with the stand-in as its trainer."""

from __future__ import annotations

import sys

from workers.training.worker import main

TRAINER = (sys.executable, "-m", "benchmarks.stand_in_trainer")

if __name__ == "__main__":
    main(TRAINER, sys.argv[1:])
