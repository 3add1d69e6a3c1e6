"""How sentences write shares and their differences: the same everywhere."""

from __future__ import annotations


def percent(share: float) -> str:
    """As `86.4 %`."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """As `12.0 points`, whichever way."""
    number = f"{100 * abs(difference):.1f}"
    return f"{number} point{'' if number == '1.0' else 's'}"
