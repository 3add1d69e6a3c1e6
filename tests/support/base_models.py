"""The base model of the demo, prepared once on a machine and kept between runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from tests.support.service import BASE_MODEL


def prepared_base_models() -> Path:
    """Prepares the base model unless it is there, and returns the folder that holds it."""
    folder = Path(
        os.environ.get("TOQUE_TEST_MODELS_DIR") or Path.home() / ".cache" / "toque-tests" / "models"
    )
    folder.mkdir(parents=True, exist_ok=True)
    pull = [sys.executable, "-m", "workers.base_models", "pull", BASE_MODEL, "--into", str(folder)]
    with FileLock(folder / ".lock"):  # one of the processes that run tests prepares it
        done = subprocess.run(pull, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the base model cannot be prepared:\n{done.stdout}{done.stderr}"
    return folder
