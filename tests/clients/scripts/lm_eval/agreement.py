"""lm-evaluation-harness: its `local-completions` against its `hf` backend with PEFT."""

from __future__ import annotations

import os
import subprocess
import sys


def test_local_completions_scores_a_model_as_peft_does() -> None:
    command = [sys.executable, "-m", "tests.clients.lm_eval", os.environ["MODEL"], os.environ["BASE_FOLDER"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-500:]
