"""The commands to run once a job has succeeded."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob


def next_steps(job: FineTuningJob) -> list[str]:
    """Returns the commands that ask the job's model and compare it with its base; none without a model."""
    model = job.fine_tuned_model
    if not model:
        return []
    base_model = model.split(":")[1]  # ft:<base>:<project>:<suffix>:<id>
    held_out = job.validation_file or "HELD_OUT.jsonl"
    compare = ["toque", "compare", "--file", held_out, "--base-model", base_model]
    compare += ["--candidate", "base", "--candidate", model, "--grader", "exact_match", "--wait"]
    return [shlex.join(["toque", "chat", model, "Your question"]), shlex.join(compare)]
