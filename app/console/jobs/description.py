"""A job as its pages show it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlencode

from app.console.jobs.advice import advice_on
from app.console.jobs.fields import PREFIX
from app.console.jobs.progress import has_ended, seconds_left, total_steps
from app.fine_tuning.methods import METHODS
from app.fine_tuning.methods.hyperparameters import taken_by
from app.fine_tuning.models import FineTuningJob
from app.fine_tuning.schemas import AUTO_SPLIT

_LINE = re.compile(r"Line (\d+) ")
_OTHER_WAY = "learning_rate_multiplier"
"""Says the same as the learning rate, and both at once are refused."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A job, and what follows from its row."""

    job: FineTuningJob

    @property
    def title(self) -> str:
        """What people call it."""
        return self.job.suffix or self.job.id

    @property
    def path(self) -> str:
        """Where its page is."""
        return f"/console/jobs/{self.job.id}"

    @property
    def topic(self) -> str:
        """What to watch for its changes."""
        return f"job:{self.job.id}"

    @property
    def for_script(self) -> dict[str, str]:
        """What the script that draws its pictures needs to know."""
        return {"title": self.title, "path": self.path, "event": f"sse:{self.topic}"}

    @property
    def total_steps(self) -> int | None:
        """How many steps it has; None if that is not known yet."""
        return total_steps(self.job)

    @property
    def seconds_left(self) -> float | None:
        """How long it is expected to go on; None if it does not run."""
        return seconds_left(self.job)

    @property
    def has_ended(self) -> bool:
        """Whether its status is final."""
        return has_ended(self.job)

    @property
    def advice(self) -> str | None:
        """What to do about its failure; None if it has not failed."""
        return advice_on(self.job.error["code"]) if self.job.error else None

    @property
    def refused_file(self) -> tuple[str, int | None] | None:
        """The file that its failure is about, and the line if one is named; None if it is about neither."""
        error = self.job.error or {}
        files = {"training_file": self.job.training_file_id, "validation_file": self.job.validation_file_id}
        file_id = files.get(error.get("param") or "")
        if file_id is None:
            return None
        line = _LINE.match(error["message"])
        return file_id, int(line[1]) if line else None

    @property
    def settings(self) -> dict[str, object]:
        """The values of the hyperparameters that its method takes."""
        return {
            each.name: self.job.hyperparameters.get(each.name) for each in taken_by(METHODS[self.job.method])
        }

    @property
    def again_path(self) -> str:
        """Where a job like it is created."""
        job = self.job
        entered = {
            "training_file": job.training_file_id,
            "model": job.parent or job.model,
            "method": job.method,
        }
        if job.validation_split:
            entered |= {"validation_file": AUTO_SPLIT, "share": str(job.validation_split["share"])}
        elif job.validation_file_id:
            entered["validation_file"] = job.validation_file_id
        if job.suffix:
            entered["suffix"] = job.suffix
        for name, value in self.settings.items():
            if value not in (None, "auto") and name != _OTHER_WAY:
                names = cast("list[str]", value) if isinstance(value, list) else [str(value)]
                entered[PREFIX + name] = ", ".join(names)
        return f"/console/jobs/new?{urlencode(entered)}"
