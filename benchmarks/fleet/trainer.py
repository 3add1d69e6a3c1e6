"""A trainer whose jobs take the same short time each, nearly all of which it sleeps."""

from __future__ import annotations

import sys

from benchmarks import stand_in_trainer

TRAINER = (sys.executable, "-m", "benchmarks.fleet.trainer")
STEPS, STEP_SECONDS = 2, 0.25

if __name__ == "__main__":
    stand_in_trainer.STEP_SECONDS = (STEP_SECONDS, STEP_SECONDS)
    stand_in_trainer.main()
