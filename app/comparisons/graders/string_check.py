"""OpenAI's `string_check` grader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from typing_extensions import override

from app.comparisons.graders.base import Grade, binary_grade
from app.comparisons.graders.template import Template, TemplateValues
from app.comparisons.graders.template_grader import TemplateGrader


class StringCheck(TemplateGrader):
    """Gives 1 if `input` is the reference (`eq`) or not (`ne`), or contains it (`like`, `ilike`)."""

    type: Literal["string_check"]
    input: Template
    reference: Template
    operation: Literal["eq", "ne", "like", "ilike"]

    @override
    def templates(self) -> list[str]:
        return [self.input, self.reference]

    @override
    def grade_values(self, values: TemplateValues, replies: Sequence[str | None]) -> Grade:
        text, reference = values.fill_in(self.input), values.fill_in(self.reference)
        match self.operation:
            case "eq":
                return binary_grade(text == reference)
            case "ne":
                return binary_grade(text != reference)
            case "like":
                return binary_grade(reference in text)
            case "ilike":
                return binary_grade(reference.casefold() in text.casefold())
