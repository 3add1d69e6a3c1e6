"""The `regex` grader."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from typing_extensions import override

from app.comparisons.graders.base import Grade, TextGrader, binary_grade
from app.core.patterns import (
    MAX_PATTERN,
    PATTERN_SECONDS,
    PatternError,
    cached_pattern,
    compile_pattern,
)


class RegexMatch(TextGrader):
    """Gives 1 if the pattern is found in the answer or, with `full`, matches the whole answer."""

    type: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, max_length=MAX_PATTERN)
    full: bool = False
    ignore_case: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            compile_pattern(pattern)
        except PatternError as error:
            raise PydanticCustomError("regex", "{reason}", {"reason": str(error)}) from None
        return pattern

    @override
    def grade_text(self, reference: str, answer: str) -> Grade:
        pattern = cached_pattern(self.pattern, ignore_case=self.ignore_case)
        match = pattern.fullmatch if self.full else pattern.search
        try:
            return binary_grade(match(answer.strip(), timeout=PATTERN_SECONDS) is not None)
        except TimeoutError:
            return Grade(None, f"the pattern took longer than {PATTERN_SECONDS} s on this answer")

    @override
    def misfit(self, reference: str) -> str | None:
        if self.grade_text("", reference).score is None:
            return f"keeps the pattern busy for longer than {PATTERN_SECONDS} s"
        return None
