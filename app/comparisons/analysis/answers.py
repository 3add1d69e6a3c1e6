"""The input of the analysis: candidates, their graded answers, and the caller's thresholds.

This module imports no numpy, so the API's process may import it. `analysis.summary` does, so only child
processes import that.
"""

from __future__ import annotations

from typing import Any

import msgspec

from app.comparisons.decision import Thresholds
from app.comparisons.plan import Candidate


class Answer(msgspec.Struct, frozen=True):
    """A candidate's answer to one question, and its grade.

    Without a score, the question counts as failed, with 0. Either the model gave no answer, and `error` says
    why; or there is a `text` that could not be graded, and `error` says what the judge replied.
    """

    text: str | None
    score: float | None
    """The grade, from 0 to 1."""
    error: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float | None = None
    """The time from the question to the whole answer; None without an answer."""


class CandidateAnswers(msgspec.Struct, frozen=True):
    """A candidate's answers, one for each question, in the order of the questions."""

    candidate: Candidate
    answers: list[Answer]


class GeneralAnswers(msgspec.Struct, frozen=True):
    """The answers of the base model and of the tuned candidates to the general questions."""

    base: list[Answer]
    tuned: dict[str, list[Answer]]
    """The tuned candidates' answers by name, each in the order of `base`."""


class ComparisonAnswers(msgspec.Struct, frozen=True):
    """All graded answers of a comparison, and what else its results are computed from."""

    candidates: list[CandidateAnswers]
    slices: list[dict[str, str]] = []
    """The metadata of each question, in their order; results by slice are computed unless it is empty."""
    grader: str | dict[str, Any] | None = None
    """The grader's document; with `label_f1`, candidates get a macro F1."""
    references: list[str] = []
    """The reference of each question, in their order; only the macro F1 needs them."""
    general: GeneralAnswers | None = None
    thresholds: Thresholds = Thresholds()
    seed: int = 0
    """The seed of bootstrap and permutations; the same answers and seed give the same results."""
