"""What several jobs over each other say, as a sentence: which is better, if that can be told."""

from __future__ import annotations

from collections.abc import Sequence

from app.console.jobs.curves import Curves
from app.console.jobs.downsampling import Numbers
from app.console.jobs.readings import FEWEST_EVALUATIONS, margin_of
from app.fine_tuning.models import FineTuningJob


def read_overlay(jobs: Sequence[tuple[str, FineTuningJob, Curves]]) -> str:
    """Return which of several jobs, each with its title, had the lowest validation loss."""
    found = [(title, *curves.measured("full_valid_loss")) for title, _, curves in jobs]
    return _obstacle([job for _, job, _ in jobs], found) or _ranking(found)


def _obstacle(jobs: Sequence[FineTuningJob], found: Sequence[tuple[str, Numbers, Numbers]]) -> str | None:
    """Return why their losses do not say which is better; None if they do."""
    files = {job.validation_file.sha256 if job.validation_file else None for job in jobs}
    if None in files:
        return "Not all of them have validation data, so their losses do not say which is better."
    if len(files) > 1:
        return "They were evaluated on different examples, so their validation losses cannot be compared."
    if len({job.method for job in jobs}) > 1:
        return "They were trained by different methods, whose losses cannot be compared."
    missing = ", ".join(title for title, _, values in found if not len(values))
    return f"Which is better is open until all are evaluated on all examples: {missing}." if missing else None


def _ranking(found: Sequence[tuple[str, Numbers, Numbers]]) -> str:
    ranked = sorted(found, key=lambda each: each[2].min())
    best, *others = (
        f"{title}, {values.min():.3g} at step {int(steps[values.argmin()]):,}"
        for title, steps, values in ranked
    )
    lowest = f"The lowest validation loss is that of {best}; then {'; '.join(others)}."
    if min(len(values) for _, _, values in ranked) < FEWEST_EVALUATIONS:
        return f"{lowest} There are too few evaluations to say how much of that is chance."
    margin = max(margin_of(values) for _, _, values in ranked[:2])
    lead = ranked[1][2].min() - ranked[0][2].min()
    compared = "less" if lead <= margin else "more"
    return f"{lowest} The first two differ by {compared} than their scatter of ±{margin:.2g}."
