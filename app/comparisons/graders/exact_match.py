"""The `exact_match` grader."""

from __future__ import annotations

from typing import Literal

from typing_extensions import override

from app.comparisons.graders.base import Grade, TextGrader, binary_grade


class ExactMatch(TextGrader):
    """Gives 1 if the answer is the reference, apart from white space at both ends."""

    type: Literal["exact_match"] = "exact_match"

    @override
    def grade_text(self, reference: str, answer: str) -> Grade:
        return binary_grade(answer.strip() == reference.strip())
