"""The `numeric` grader."""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import Field
from typing_extensions import override

from app.comparisons.graders.base import Grade, TextGrader

_NUMBER = re.compile(
    r"(?:(?<![\w.])[-+\u2212])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
)
"""A number with its sign; a sign directly after a word or a digit is a hyphen."""
_ROUNDING = 1e-12
"""The share of a number that decimal fractions may lose in binary without being different."""


class Numeric(TextGrader):
    """Gives 1 if the answer's number is within the larger of both tolerances of the reference's.

    A text's number is its last one, or the `first`. It may be written 1234.5, 1,234.5, .5, -3 or 2e-4; a
    comma separates thousands only before three digits. Units and per cent signs around it are ignored.
    """

    type: Literal["numeric"] = "numeric"
    absolute: float = Field(default=0, ge=0, allow_inf_nan=False)
    """The largest difference that is still right."""
    relative: float = Field(default=0, ge=0, allow_inf_nan=False)
    """The same as a share of the reference."""
    take: Literal["first", "last"] = "last"

    @override
    def grade_text(self, reference: str, answer: str) -> Grade:
        wanted, given = self.number(reference), self.number(answer)
        if wanted is None or given is None:
            return Grade(0.0, "no number in the answer")
        tolerance = max(self.absolute, self.relative * abs(wanted)) + _ROUNDING * max(1.0, abs(wanted))
        return Grade(float(abs(given - wanted) <= tolerance), f"{given:g}, reference {wanted:g}")

    @override
    def misfit(self, reference: str) -> str | None:
        return "has no number" if self.number(reference) is None else None

    def number(self, text: str) -> float | None:
        """Return the text's number, or None if it has none."""
        found = [
            number
            for match in _NUMBER.finditer(text)
            if math.isfinite(number := float(match[0].replace(",", "").replace("\u2212", "-")))
        ]
        return (found[0] if self.take == "first" else found[-1]) if found else None
