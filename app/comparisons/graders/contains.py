"""The `contains` grader."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from typing_extensions import override

from app.comparisons.graders.base import Grade, TextGrader, binary_grade


class Contains(TextGrader):
    """Gives 1 if the answer contains `text`, or the reference if there is no `text`."""

    type: Literal["contains"] = "contains"
    text: str | None = Field(default=None, min_length=1)
    ignore_case: bool = False

    @override
    def grade_text(self, reference: str, answer: str) -> Grade:
        wanted = reference.strip() if self.text is None else self.text
        if self.ignore_case:
            wanted, answer = wanted.casefold(), answer.casefold()
        return binary_grade(wanted in answer)
