"""What pages of comparisons watch."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.comparisons.models import Comparison
from app.console.events import topic
from app.context import Context

_UNFINISHED = ("queued", "running")


def watch_comparisons() -> None:
    """Let pages watch all comparisons of a project, or one of them."""
    topic("comparisons", _all)
    topic("comparison", _one)


def _all(session: Session, context: Context, _: str) -> str:
    mine = Comparison.project_id == context.project_id
    newest = select(func.max(Comparison.created_at)).where(mine).scalar_subquery()
    running = func.count().filter(Comparison.status == "running")
    unfinished = select(newest, func.count(), running, func.sum(Comparison.done)).where(
        mine, Comparison.status.in_(_UNFINISHED)
    )
    return str(session.execute(unfinished).one())


def _one(session: Session, context: Context, comparison_id: str) -> str:
    this = select(Comparison.status, Comparison.done).where(
        Comparison.id == comparison_id, Comparison.project_id == context.project_id
    )
    return str(session.execute(this).one_or_none())
