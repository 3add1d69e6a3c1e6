"""The `label_f1` grader."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from typing_extensions import override

from app.comparisons.graders.base import Grade, TextGrader
from app.comparisons.questions import Question

MAX_LABELS = 1000
_FEW_QUESTIONS = 20
"""With fewer questions than this, all references may differ and still be labels."""


class LabelF1(TextGrader):
    """Gives 1 if the answer is the reference's label; each candidate also gets a macro F1 over all labels.

    The whole answer is read as one label, without case, spacing, or punctuation at its ends.
    """

    type: Literal["label_f1"] = "label_f1"
    labels: tuple[str, ...] | None = Field(default=None, min_length=2, max_length=MAX_LABELS)
    """The labels that references may have; if there are none here, whatever labels they do have."""

    @override
    def grade_text(self, reference: str, answer: str) -> Grade:
        wanted, read = self.label(reference), self.label(answer)
        if wanted == read:
            return Grade(1.0)
        return Grade(0.0, f"{read[:80]!r} instead of {wanted[:80]!r}")

    @override
    def misfit(self, reference: str) -> str | None:
        label = self.label(reference)
        if not label:
            return "is no label"
        if self.labels is not None and label not in {self.label(name) for name in self.labels}:
            return f"is {label[:80]!r}, which is none of the labels"
        return None

    @override
    def check_fits(self, questions: Sequence[Question], *, param: str = "grader") -> None:
        super().check_fits(questions, param=param)
        count = len({self.label(question.reference) for question in questions})
        if count > MAX_LABELS or (len(questions) >= _FEW_QUESTIONS and count > len(questions) / 2):
            raise self.misfit_error(
                param, f"{count} different references in {len(questions)} lines are free text, not labels"
            )

    def label(self, text: str) -> str:
        """Return the label that a text is read as; empty if it has neither letters nor digits."""
        text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        start, end = 0, len(text)
        while start < end and not text[start].isalnum():
            start += 1
        while end > start and not text[end - 1].isalnum():
            end -= 1
        return text[start:end]
