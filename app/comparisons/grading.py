"""Grades all answers of a comparison and computes its results, in a child process that imports numpy."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.comparisons import models
from app.comparisons.analysis.answers import (
    Answer,
    CandidateAnswers,
    ComparisonAnswers,
    GeneralAnswers,
)
from app.comparisons.decision import Thresholds
from app.comparisons.graders.registry import parse_grader
from app.comparisons.plan import Plan
from app.comparisons.questions import Question
from app.core.database import Database

GRADING_SECONDS = 1200.0
"""The time for all answers of a comparison: far more than needed, unless many reach their own limits."""
_UNANSWERED = Answer(None, None, "It was not answered.")


def compute(database_url: str, comparison_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Grade the answers that the database has of a comparison.

    Returns:
        `ComparisonResults` as JSON, and for each answer its `question`, `candidate`, `score` and `error`.
    """
    from app.comparisons.analysis.summary import compute_results  # noqa: PLC0415 - imports numpy

    database = Database(database_url)
    try:
        with database.reader() as session:
            comparison = session.get_one(models.Comparison, comparison_id)
            plan = Plan.model_validate(comparison.plan)
            questions = _read_questions(session, comparison_id)
            graded = _grade(session, comparison_id, plan, questions)
    finally:
        database.dispose()
    results = compute_results(_collect_answers(plan, questions, graded)).model_dump(mode="json")
    scores = [
        {"candidate": place, "question": number, "score": answer.score, "error": answer.error}
        for (place, number), answer in graded.items()
    ]
    return results, scores


def _read_questions(session: Session, comparison_id: str) -> list[Question]:
    contents = (
        select(models.Question.content)
        .where(models.Question.comparison_id == comparison_id)
        .order_by(models.Question.number)
    )
    return [msgspec.convert(content, Question) for content in session.scalars(contents)]


def _grade(
    session: Session, comparison_id: str, plan: Plan, questions: list[Question]
) -> dict[tuple[int, int], Answer]:
    """Return the graded answers by the candidate's place and the question's number."""
    replies: defaultdict[tuple[int, int], list[str | None]] = defaultdict(list)
    judgements = select(models.Judgement).where(models.Judgement.comparison_id == comparison_id)
    for judgement in session.scalars(judgements.order_by(models.Judgement.turn)):
        replies[judgement.candidate, judgement.question].append(judgement.text)
    held_out, general = (parse_grader(document) for document in (plan.grader, plan.general_grader))
    graded: dict[tuple[int, int], Answer] = {}
    for row in session.scalars(select(models.Answer).where(models.Answer.comparison_id == comparison_id)):
        ask = row.candidate, row.question
        score, error = None, row.error
        if row.text is not None:
            grader = held_out if row.question < plan.questions else general
            grade = grader.grade(questions[row.question], row.text, replies[ask], row.tool_calls or ())
            score, error = grade.score, grade.detail if grade.score is None else None
        graded[ask] = Answer(row.text, score, error, row.input_tokens, row.output_tokens, row.seconds)
    return graded


def _collect_answers(
    plan: Plan, questions: list[Question], graded: dict[tuple[int, int], Answer]
) -> ComparisonAnswers:
    held_out, general = questions[: plan.questions], range(plan.questions, len(questions))

    def answers(place: int, numbers: range) -> list[Answer]:
        return [graded.get((place, number), _UNANSWERED) for number in numbers]

    by_candidate = [
        CandidateAnswers(candidate, answers(place, range(plan.questions)))
        for place, candidate in enumerate(plan.candidates)
    ]
    guard = None
    if plan.general_questions:
        base, *tuned = plan.general_candidates
        guard = GeneralAnswers(
            base=answers(base, general),
            tuned={plan.candidates[place].name: answers(place, general) for place in tuned},
        )
    return ComparisonAnswers(
        candidates=by_candidate,
        slices=[question.metadata for question in held_out],
        grader=plan.grader,
        references=[question.reference for question in held_out],
        general=guard,
        thresholds=Thresholds(plan.margin, plan.good_enough, plan.max_regression),
        seed=plan.seed,
    )
