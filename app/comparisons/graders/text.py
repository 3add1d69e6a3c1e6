"""Graders that hold an answer's text against the reference: deterministic, and without a model.

Each says what it takes for a match, and of which references it can make nothing (`misfit`).
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from abc import ABC, abstractmethod
from typing import Literal

import msgspec
import regex
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError
from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq
from typing_extensions import override

from app.comparisons.graders.patterns import MAX_PATTERN, PatternError, compile_pattern

REGEX_SECONDS = 0.1
"""What a pattern may take on one answer."""
_NUMBER = re.compile(
    r"(?:(?<![\w.])[-+\u2212])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
)
"""A sign right after a word or a digit is a hyphen."""


class Grade(msgspec.Struct, frozen=True):
    """How good an answer is, and why."""

    score: float | None
    """0 to 1. None: it could not be graded (the judge answered nonsense, a pattern took too long)."""
    detail: str = ""
    """One line for a person."""


class GraderModel(BaseModel):
    """A grader as a request has it; a field that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class TextGrader(GraderModel, ABC):
    """Grades an answer by its text and the reference's."""

    @abstractmethod
    def grade(self, reference: str, answer: str) -> Grade:
        """The answer's grade."""

    def misfit(self, reference: str) -> str | None:  # noqa: ARG002
        """Why no answer can be held against this reference; None where one can."""
        return None


class ExactMatch(TextGrader):
    """1 if the answer is the reference, white space at both ends aside."""

    type: Literal["exact_match"] = "exact_match"

    @override
    def grade(self, reference: str, answer: str) -> Grade:
        return _all_or_nothing(answer.strip() == reference.strip())


class NormalizedMatch(TextGrader):
    """1 if answer and reference are the same words.

    Spacing and Unicode form do not count; case and punctuation do not either, unless told so.
    """

    type: Literal["normalized_match"] = "normalized_match"
    ignore_case: bool = True
    ignore_punctuation: bool = True

    @override
    def grade(self, reference: str, answer: str) -> Grade:
        return _all_or_nothing(self._normalized(answer) == self._normalized(reference))

    @override
    def misfit(self, reference: str) -> str | None:
        return None if self._normalized(reference) else "has nothing but punctuation"

    def _normalized(self, text: str) -> str:
        text = unicodedata.normalize("NFKC", text)
        if self.ignore_case:
            text = text.casefold()
        if self.ignore_punctuation:
            text = "".join(" " if unicodedata.category(sign)[0] == "P" else sign for sign in text)
        return " ".join(text.split())


class Contains(TextGrader):
    """1 if the answer has `text` in it, or without one the reference."""

    type: Literal["contains"] = "contains"
    text: str | None = Field(default=None, min_length=1)
    ignore_case: bool = False

    @override
    def grade(self, reference: str, answer: str) -> Grade:
        wanted = reference.strip() if self.text is None else self.text
        if self.ignore_case:
            wanted, answer = wanted.casefold(), answer.casefold()
        return _all_or_nothing(wanted in answer)


class Regex(TextGrader):
    """1 if the pattern is found in the answer, or with `full` if it is the whole answer."""

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
    def grade(self, reference: str, answer: str) -> Grade:
        pattern = _compiled(self.pattern, ignore_case=self.ignore_case)
        look = pattern.fullmatch if self.full else pattern.search
        try:
            return _all_or_nothing(look(answer.strip(), timeout=REGEX_SECONDS) is not None)
        except TimeoutError:
            return Grade(None, f"the pattern took longer than {REGEX_SECONDS} s on this answer")

    @override
    def misfit(self, reference: str) -> str | None:
        if self.grade("", reference).score is None:
            return f"keeps the pattern busy for longer than {REGEX_SECONDS} s"
        return None


class LabelF1(TextGrader):
    """1 if the answer is the reference's label; a candidate also gets the macro F1 over all labels.

    An answer is read whole, without case, spacing, and punctuation at its ends.
    """

    type: Literal["label_f1"] = "label_f1"
    labels: tuple[str, ...] | None = Field(default=None, min_length=2, max_length=1000)
    """Those that a reference may be; None: whatever the references are."""

    @override
    def grade(self, reference: str, answer: str) -> Grade:
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

    def label(self, text: str) -> str:
        """What a text is read as; empty for one without letters or digits."""
        text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        start, end = 0, len(text)
        while start < end and not text[start].isalnum():
            start += 1
        while end > start and not text[end - 1].isalnum():
            end -= 1
        return text[start:end]


class TextSimilarity(TextGrader):
    """How alike answer and reference are; with a `threshold` 1 from there on, and 0 below."""

    type: Literal["text_similarity"] = "text_similarity"
    metric: Literal["ratio", "rouge_l"] = "ratio"
    """`ratio`: the share of characters that both have in the same order. `rouge_l`: the same of words, as
    ROUGE-L's F measure."""
    threshold: float | None = Field(default=None, gt=0, le=1)

    @override
    def grade(self, reference: str, answer: str) -> Grade:
        if self.metric == "ratio":
            alike = fuzz.ratio(answer.strip(), reference.strip()) / 100
        else:
            alike = rouge_l(reference, answer)
        if self.threshold is None:
            return Grade(alike)
        return Grade(float(alike >= self.threshold), f"{self.metric} {alike:.3f}")

    @override
    def misfit(self, reference: str) -> str | None:
        if self.metric == "rouge_l" and not _rouge_words(reference):
            return "has no Latin letters or digits, which are all that rouge_l reads; take metric 'ratio'"
        return None


class Numeric(TextGrader):
    """1 if the answer's number is the reference's, give or take the larger of both tolerances.

    A text's number is the last in it (or the `first`), written 1234.5, 1,234.5, .5, -3 or 2e-4; a comma is a
    thousands sign only before three digits. What stands around it, a unit or a per cent sign, is not read.
    """

    type: Literal["numeric"] = "numeric"
    absolute: float = Field(default=0, ge=0, allow_inf_nan=False)
    relative: float = Field(default=0, ge=0, allow_inf_nan=False)
    """Share of the reference."""
    take: Literal["first", "last"] = "last"

    @override
    def grade(self, reference: str, answer: str) -> Grade:
        wanted, given = self.number(reference), self.number(answer)
        if wanted is None or given is None:
            return Grade(0.0, "no number in the answer")
        # A last bit that decimal fractions lose in binary is no difference.
        room = max(self.absolute, self.relative * abs(wanted)) + 1e-12 * max(1.0, abs(wanted))
        return Grade(float(abs(given - wanted) <= room), f"{given:g}, reference {wanted:g}")

    @override
    def misfit(self, reference: str) -> str | None:
        return "has no number" if self.number(reference) is None else None

    def number(self, text: str) -> float | None:
        """The text's number, None if it has none."""
        found = [
            number
            for match in _NUMBER.finditer(text)
            if math.isfinite(number := float(match[0].replace(",", "").replace("\u2212", "-")))
        ]
        return (found[0] if self.take == "first" else found[-1]) if found else None


def rouge_l(reference: str, answer: str) -> float:
    """The F measure of ROUGE-L (Lin, 2004), words read as the package `rouge-score` does without stemming."""
    wanted, given = _rouge_words(reference), _rouge_words(answer)
    common = LCSseq.similarity(wanted, given)
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _rouge_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str, *, ignore_case: bool) -> regex.Pattern[str]:
    return compile_pattern(pattern, ignore_case=ignore_case)


def _all_or_nothing(right: bool) -> Grade:
    return Grade(float(right))
