"""The queue of comparisons: how an API process gets one, keeps it, and writes down what comes of it.

A claim raises `lease_epoch`; every later write names it. A write that finds no such row raises
`LeaseLostError`: the comparison was cancelled, or another process has it. Time is the database's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql import ColumnElement

from app.comparisons.models import Answer, Comparison, Judgement
from app.core.database import database_now


class LeaseLostError(Exception):
    """The comparison is cancelled, or another process's."""


def is_waiting(session: Session) -> bool:
    """Whether there is one to claim; asked far more often than there is."""
    return session.scalar(select(Comparison.id).where(_claimable()).limit(1)) is not None


def claim_next(session: Session, lease_seconds: float) -> Comparison | None:
    """Leases the next one: of the project with the fewest running, the oldest. None when there is none."""
    running = aliased(Comparison)
    of_project = (
        select(func.count())
        .where(running.project_id == Comparison.project_id, running.status == "running")
        .scalar_subquery()
    )
    comparison = session.scalar(
        select(Comparison)
        .where(_claimable())
        .order_by(of_project, Comparison.created_at, Comparison.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=Comparison)
    )
    if comparison is None:
        return None
    comparison.status = "running"
    comparison.lease_epoch += 1
    comparison.lease_until = session.scalar(select(database_now() + lease_seconds))
    comparison.started_at = comparison.started_at or time.time()
    session.flush()
    return comparison


def renew_lease(session: Session, comparison_id: str, epoch: int, lease_seconds: float) -> None:
    """The heartbeat.

    Raises:
        LeaseLostError: this process has it no more.
    """
    _write(session, comparison_id, epoch, lease_until=database_now() + lease_seconds)


def record_answers(
    session: Session, comparison_id: str, epoch: int, answers: Sequence[dict[str, Any]], done: int
) -> None:
    """Answers, and how many there are now.

    Raises:
        LeaseLostError: this process has it no more.
    """
    _write(session, comparison_id, epoch, done=done)
    _add(session, Answer, comparison_id, answers)


def record_judgements(
    session: Session, comparison_id: str, epoch: int, judgements: Sequence[dict[str, Any]]
) -> None:
    """What judges said.

    Raises:
        LeaseLostError: this process has it no more.
    """
    _write(session, comparison_id, epoch, lease_epoch=epoch)
    _add(session, Judgement, comparison_id, judgements)


def succeed(
    session: Session,
    comparison_id: str,
    epoch: int,
    results: dict[str, Any],
    scores: Sequence[dict[str, Any]],
) -> None:
    """The final state; scores are of `question` and `candidate`, with the `error` of those without a score.

    Raises:
        LeaseLostError: this process has it no more.
    """
    _end(session, comparison_id, epoch, status="succeeded", results=results)
    graded = (
        update(Answer)
        .where(
            Answer.comparison_id == comparison_id,
            Answer.question == bindparam("of_question"),
            Answer.candidate == bindparam("of_candidate"),
        )
        .values(score=bindparam("new_score"), error=bindparam("new_error"))
    )
    rows = [
        {
            "of_question": score["question"],
            "of_candidate": score["candidate"],
            "new_score": score["score"],
            "new_error": score["error"],
        }
        for score in scores
    ]
    session.connection().execute(graded, rows)


def fail(session: Session, comparison_id: str, epoch: int, *, code: str, message: str) -> None:
    """The final state, with the reason.

    Raises:
        LeaseLostError: this process has it no more.
    """
    error = {"code": code, "message": message, "param": None}
    _end(session, comparison_id, epoch, status="failed", error=error)


def release(session: Session, comparison_id: str, epoch: int) -> None:
    """Gives it back, for another process to go on with.

    Raises:
        LeaseLostError: this process has it no more.
    """
    _write(session, comparison_id, epoch, status="queued", lease_until=None)


def _add(
    session: Session, table: type[Answer | Judgement], comparison_id: str, rows: Sequence[dict[str, Any]]
) -> None:
    """Inserts; a row whose commit came through while its reply was lost stays as it is."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    session.execute(
        insert(table).on_conflict_do_nothing(), [{"comparison_id": comparison_id} | row for row in rows]
    )


def _claimable() -> ColumnElement[bool]:
    lapsed = (Comparison.status == "running") & (Comparison.lease_until < database_now())
    return or_(Comparison.status == "queued", lapsed)


def _end(session: Session, comparison_id: str, epoch: int, **values: Any) -> None:
    _write(session, comparison_id, epoch, finished_at=time.time(), lease_until=None, api_keys=None, **values)


def _write(session: Session, comparison_id: str, epoch: int, **values: Any) -> None:
    """The one fenced write."""
    fenced = update(Comparison).where(
        Comparison.id == comparison_id, Comparison.lease_epoch == epoch, Comparison.status == "running"
    )
    if session.execute(fenced.values(**values)).rowcount != 1:  # pyright: ignore
        raise LeaseLostError(comparison_id)
