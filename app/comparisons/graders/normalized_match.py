"""The `normalized_match` grader."""

from __future__ import annotations

import unicodedata
from typing import Literal

from typing_extensions import override

from app.comparisons.graders.base import Grade, TextGrader, binary_grade


class NormalizedMatch(TextGrader):
    """Gives 1 if answer and reference have the same words.

    Spacing and Unicode form never count; case and punctuation count only if the settings say so.
    """

    type: Literal["normalized_match"] = "normalized_match"
    ignore_case: bool = True
    ignore_punctuation: bool = True

    @override
    def grade_text(self, reference: str, answer: str) -> Grade:
        return binary_grade(self._normalize(answer) == self._normalize(reference))

    @override
    def misfit(self, reference: str) -> str | None:
        return None if self._normalize(reference) else "has nothing but punctuation"

    def _normalize(self, text: str) -> str:
        text = unicodedata.normalize("NFKC", text)
        if self.ignore_case:
            text = text.casefold()
        if self.ignore_punctuation:
            text = "".join(" " if unicodedata.category(sign)[0] == "P" else sign for sign in text)
        return " ".join(text.split())
