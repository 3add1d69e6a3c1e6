"""What a picture says, as a sentence that is computed from its numbers.

A change is called one only if it is larger than chance: for training, whose steps are of different examples,
by the standard errors of two means; for validation, whose evaluations are of the same examples, by the
scatter of neighbouring ones (Gasser, Sroka and Jennen-Steinmetz, "Residual Variance and Residual Pattern in
Nonlinear Regression", Biometrika 1986). Where there are too few points, the sentence claims nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.console.jobs.curves import Curves
from app.console.jobs.downsampling import Numbers
from app.fine_tuning.models import Checkpoint

FEWEST_STEPS, FEWEST_EVALUATIONS = 20, 5
_CERTAIN = 2.0
"""How many standard errors a change of training loss must be to be called one."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Sentences on a picture, and the checkpoint that they advise to ask instead of the last one, if any."""

    text: str
    better: Checkpoint | None = None


def read_picture(key: str, curves: Curves, checkpoints: Sequence[Checkpoint]) -> Reading:
    """Return what the picture of this key says."""
    if key == "learning_rate":
        return Reading(_learning_rate(curves))
    if key == "speed":
        return Reading(_speed(curves))
    training = _training(key, curves)
    validation = _validation(key, curves, checkpoints)
    return Reading(f"{training} {validation.text}".strip(), validation.better)


def _training(key: str, curves: Curves) -> str:
    _, values = curves.measured(f"train_{key}")
    name = f"training {_NOUNS[key]}"
    if not len(values):
        return "No step has been recorded yet."
    if len(values) < FEWEST_STEPS:
        return f"{_count(len(values), 'step')} so far: too few to say where {name} goes."
    size = max(FEWEST_STEPS // 2, len(values) // 10)
    before, now = values[:size], values[-size:]
    error = np.sqrt((before.var(ddof=1) + now.var(ddof=1)) / size)
    means = f"{before.mean():.3g} in the first {size:,} steps, {now.mean():.3g} in the last"
    change = now.mean() - before.mean()
    if abs(change) <= _CERTAIN * error:
        return f"{name.capitalize()} has not changed by more than its scatter: {means}."
    return f"{name.capitalize()} {'rose' if change > 0 else 'fell'}: {means}."


def _validation(key: str, curves: Curves, checkpoints: Sequence[Checkpoint]) -> Reading:
    measured_on, steps, values = _evaluations(key, curves)
    name = f"validation {_NOUNS[key]}"
    if not len(values):
        is_worth_saying = key == "loss" and len(curves.steps)
        return Reading(
            f"No {name} has been measured so far; it would say when to stop." if is_worth_saying else ""
        )
    last_step, last = int(steps[-1]), values[-1]
    if len(values) < FEWEST_EVALUATIONS:
        times = _count(len(values), "time")
        return Reading(
            f"{name.capitalize()} was measured {times}, last {last:.3g} at step {last_step:,}: "
            "too few to say where it is best."
        )
    sign = 1.0 if key == "loss" else -1.0
    best = len(values) - 1 - int(np.argmin(sign * values[::-1]))  # the last of equal ones
    best_step, extreme = int(steps[best]), "lowest" if key == "loss" else "highest"
    margin = margin_of(values)
    basis = f"{_count(len(values), 'evaluation')} on {measured_on}"
    worse = sign * (last - values[best])
    if best == len(values) - 1:
        return Reading(f"{name.capitalize()} is {extreme} now: {last:.3g} at step {last_step:,} ({basis}).")
    was = f"{name.capitalize()} was {extreme} at step {best_step:,} ({values[best]:.3g})"
    if worse <= margin:
        return Reading(
            f"{was}; {last:.3g} at step {last_step:,} is not worse by more than its scatter "
            f"of ±{margin:.2g} ({basis})."
        )
    moved = "risen" if key == "loss" else "fallen"
    return Reading(
        f"{was} and has {moved} since, to {last:.3g} at step {last_step:,} ({basis}).",
        _nearest(checkpoints, best_step, last_step) if key == "loss" else None,
    )


def _evaluations(key: str, curves: Curves) -> tuple[str, Numbers, Numbers]:
    """Return those on all examples, or those on a few if they are more and the others too few."""
    some, every = curves.measured(f"valid_{key}"), curves.measured(f"full_valid_{key}")
    if len(every[1]) >= FEWEST_EVALUATIONS or len(every[1]) >= len(some[1]):
        return "all validation examples", *every
    return "a few validation examples", *some


def scatter(values: Numbers) -> float:
    """Return the standard deviation of evaluations around the curve that they follow.

    The second differences of a smooth curve are small, so their variance is six times that of the noise.
    Their median is taken, since a curve that falls steeply at first has a few large ones.
    """
    return float(np.median(np.abs(np.diff(values, n=2))) * 1.4826 / np.sqrt(6))


def margin_of(values: Numbers) -> float:
    """Return how much two evaluations differ by chance, at 95 %."""
    return float(np.sqrt(2)) * scatter(values) * _student(len(values) - 2)


def _student(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution (Abramowitz and Stegun, 26.7.5)."""
    z = 1.96
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def _nearest(checkpoints: Sequence[Checkpoint], step: int, last_step: int) -> Checkpoint | None:
    """Return the checkpoint nearest to a step, unless that is the last step's, too."""
    if not checkpoints:
        return None
    nearest = min(checkpoints, key=lambda each: abs(each.step_number - step))
    is_nearer = abs(nearest.step_number - step) < last_step - step
    return nearest if is_nearer and nearest.step_number < last_step else None


def _learning_rate(curves: Curves) -> str:
    steps, rates = curves.measured("learning_rate")
    if not len(rates):
        return "No step has been recorded yet."
    peak = int(np.argmax(rates))
    reached = f"It was highest at step {int(steps[peak]):,} ({rates[peak]:.2g})"
    if peak == len(rates) - 1:
        return f"It is at {rates[-1]:.2g} in step {int(steps[-1]):,}, the highest so far."
    return f"{reached}, and is {rates[-1]:.2g} in step {int(steps[-1]):,}."


def _speed(curves: Curves) -> str:
    _, speeds = curves.speed(1)
    if len(speeds) < FEWEST_STEPS:
        return "Too few steps so far to say how fast training is."
    low, middle, high = np.quantile(speeds, (0.25, 0.5, 0.75))
    return f"Half of the steps train {low:,.0f} to {high:,.0f} tokens a second; the median is {middle:,.0f}."


_NOUNS = {
    "loss": "loss",
    "mean_token_accuracy": "accuracy",
    "reward_accuracy": "reward accuracy",
    "reward_margin": "reward margin",
}


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
