"""Where two candidates differ: conditions of questions, for `service.list_items`.

A question without a score counts as 0, as in the results; so wins, losses and ties are as many as those of
the results' pair.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import aliased

from app.comparisons.models import Answer, Question

Difference = Literal["wins", "losses", "ties", "failed"]


def is_held_out(questions: int) -> ColumnElement[bool]:
    """The question is one of the held-out file, which has as many."""
    return Question.number < questions


def is_general(questions: int) -> ColumnElement[bool]:
    """The question is one of the file of general questions, which follow as many held-out ones."""
    return Question.number >= questions


def differs(difference: Difference, one: int, other: int) -> ColumnElement[bool]:
    """Candidate `one` did better than `other`, or worse, or as well; or one of them has no score.

    Args:
        difference: what is looked for.
        one: the candidate's place in the plan.
        other: the place of the candidate that it is compared with.
    """
    first, second = aliased(Answer), aliased(Answer)
    score, rival = func.coalesce(first.score, 0.0), func.coalesce(second.score, 0.0)
    condition = {
        "wins": score > rival,
        "losses": score < rival,
        "ties": score == rival,
        "failed": or_(first.score.is_(None), second.score.is_(None)),
    }[difference]
    pair = and_(
        first.comparison_id == Question.comparison_id,
        first.question == Question.number,
        first.candidate == one,
        second.comparison_id == Question.comparison_id,
        second.question == Question.number,
        second.candidate == other,
    )
    return select(first.question).select_from(first, second).where(pair, condition).exists()
