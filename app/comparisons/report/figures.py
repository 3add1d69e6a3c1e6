"""How reports and sentences write scores, differences and times."""

from __future__ import annotations

from collections.abc import Callable

from app.comparisons.results import Interval


def percent(share: float) -> str:
    """Return a share as `86.4 %`."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """Return the size of a difference, without its sign, as `12.0 points`."""
    number = f"{100 * abs(difference):.1f}"
    return f"{number} point{'' if number == '1.0' else 's'}"


def signed_points(difference: float) -> str:
    """Return a difference in points with its sign, as `+12.0`."""
    return f"{round(100 * difference, 1) + 0:+.1f}".replace("-", "\u2212")  # + 0: no -0.0


def interval(interval: Interval, form: Callable[[float], str] = percent) -> str:
    """Return an interval as `81.2 % to 90.4 %`."""
    return f"{form(interval.low)} to {form(interval.high)}"


def seconds(duration: float) -> str:
    """Return a duration as `0.41 s`."""
    return f"{duration:.2f} s"


def p_value(probability: float) -> str:
    """Return a p-value as `0.012`, or `< 0.001`."""
    return "< 0.001" if probability < 0.001 else f"{probability:.3f}"
