"""What statistics and verdict are computed from: candidates, their graded answers, the caller's thresholds.

Plain structs that pickle, since the computing happens in a child process:

    results = await run_in_child(compute_results, ComparisonAnswers(…))

with `from app.comparisons.analysis.summary import compute_results` inside the function, not at the top of a
module that the API imports: it imports numpy.
"""

from __future__ import annotations

from typing import Any

import msgspec

from app.comparisons.decision import Thresholds
from app.comparisons.plan import Candidate


class Answer(msgspec.Struct, frozen=True):
    """What a candidate said to one question, and the grade that it got.

    Without a score the question counts as failed, with 0: the model gave no answer (`error` says why), or the
    judge answered nonsense (`text` is there all the same, `error` says what the judge said).
    """

    text: str | None
    score: float | None
    """0 to 1."""
    error: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float | None = None
    """From the question to the whole answer; None where nothing was answered."""


class CandidateAnswers(msgspec.Struct, frozen=True):
    """A candidate's answers, one for each question, in the order of the questions."""

    candidate: Candidate
    answers: list[Answer]


class GeneralAnswers(msgspec.Struct, frozen=True):
    """The regression guard's general questions, answered by the base as it is and by tuned candidates."""

    base: list[Answer]
    tuned: dict[str, list[Answer]]
    """By candidate's name; each in the order of `base`."""


class ComparisonAnswers(msgspec.Struct, frozen=True):
    """Everything that was asked, answered and graded."""

    candidates: list[CandidateAnswers]
    slices: list[dict[str, str]] = []
    """Each question's metadata, in the order of the questions; empty: no results by slice."""
    grader: str | dict[str, Any] | None = None
    """The grader's document; needed where its type is `label_f1`, whose candidates get a macro F1."""
    references: list[str] = []
    """Each question's, in their order; needed for the macro F1 alone."""
    general: GeneralAnswers | None = None
    thresholds: Thresholds = Thresholds()
    seed: int = 0
    """Of bootstrap and permutations; the same answers and seed give the same results."""
