"""The `text_similarity` grader."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field
from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq
from typing_extensions import override

from app.comparisons.graders.base import Grade, TextGrader


class TextSimilarity(TextGrader):
    """Gives the similarity of answer and reference; with a `threshold`, 1 from there on and 0 below it."""

    type: Literal["text_similarity"] = "text_similarity"
    metric: Literal["ratio", "rouge_l"] = "ratio"
    """`ratio` is the share of characters that both texts have in the same order; `rouge_l` is the same for
    words, as the F measure of ROUGE-L."""
    threshold: float | None = Field(default=None, gt=0, le=1)

    @override
    def grade_text(self, reference: str, answer: str) -> Grade:
        if self.metric == "ratio":
            similarity = fuzz.ratio(answer.strip(), reference.strip()) / 100
        else:
            similarity = rouge_l(reference, answer)
        if self.threshold is None:
            return Grade(similarity)
        return Grade(float(similarity >= self.threshold), f"{self.metric} {similarity:.3f}")

    @override
    def misfit(self, reference: str) -> str | None:
        if self.metric == "rouge_l" and not rouge_words(reference):
            return "has no Latin letters or digits, which are all that rouge_l reads; take metric 'ratio'"
        return None


def rouge_l(reference: str, answer: str) -> float:
    """Return ROUGE-L's F measure (Lin, 2004); words are read as `rouge-score` does without stemming."""
    wanted, given = rouge_words(reference), rouge_words(answer)
    common = LCSseq.similarity(wanted, given)
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def rouge_words(text: str) -> list[str]:
    """Return the words of a text as ROUGE counts them: of Latin letters and digits, in lower case."""
    return re.findall(r"[a-z0-9]+", text.lower())
