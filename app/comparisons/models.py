"""Comparisons, the questions that they ask, and every answer once."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, new_id

FINAL_STATUSES = frozenset({"succeeded", "failed", "cancelled"})


class Comparison(Base):
    """Candidates that are compared on one held-out file."""

    __tablename__ = "comparisons"
    __table_args__ = (
        Index("ix_comparisons_project_created", "project_id", "created_at", "id"),
        Index("ix_comparisons_status_created", "status", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("cmp_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str | None] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(16))
    model: Mapped[str] = mapped_column(String(64))
    """The base model."""
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id"))
    regression_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    plan: Mapped[dict[str, Any]]
    """As `app.comparisons.plan.Plan`."""
    excluded: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """Held-out lines that are also in a training file: `{"line": …, "training_file": …}`."""
    comparison_metadata: Mapped[dict[str, Any] | None]
    total: Mapped[int]
    """Answers that the comparison asks for."""
    done: Mapped[int] = mapped_column(default=0)
    results: Mapped[dict[str, Any] | None]
    """As `app.comparisons.results.ComparisonResults`, once it has succeeded."""
    error: Mapped[dict[str, Any] | None]
    api_keys: Mapped[dict[str, Any] | None]
    """The keys of external candidates, by their place; never shown, and deleted when the comparison ends."""

    created_at: Mapped[float] = mapped_column(default=time.time)
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    lease_epoch: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[float | None]
    """The end of the lease by the database's clock; after it, any API process may claim the comparison."""


class Question(Base):
    """A line of the held-out file, or of the file of general questions."""

    __tablename__ = "comparison_questions"
    __table_args__ = (Index("ix_comparison_questions_number", "comparison_id", "number", unique=True),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("cmpitem_"))
    comparison_id: Mapped[str] = mapped_column(ForeignKey("comparisons.id"))
    number: Mapped[int]
    """The question's number from 0; the held-out file's questions come first."""
    content: Mapped[dict[str, Any]]
    """As `app.comparisons.questions.Question`."""


class Answer(Base):
    """One candidate's answer to one question; written once."""

    __tablename__ = "comparison_answers"

    comparison_id: Mapped[str] = mapped_column(ForeignKey("comparisons.id"), primary_key=True)
    question: Mapped[int] = mapped_column(primary_key=True)
    """The question's number."""
    candidate: Mapped[int] = mapped_column(primary_key=True)
    """The candidate's place in the plan."""
    text: Mapped[str | None] = mapped_column(Text)
    tool_calls: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    """Its tool calls, as a chat completion has them."""
    error: Mapped[str | None] = mapped_column(Text)
    """Why there is no answer, or no score."""
    score: Mapped[float | None]
    """The grade from 0 to 1; None until all is graded, and if the question counts as failed."""
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float | None]


class Judgement(Base):
    """A judge's reply about one answer; written once."""

    __tablename__ = "comparison_judgements"

    comparison_id: Mapped[str] = mapped_column(ForeignKey("comparisons.id"), primary_key=True)
    question: Mapped[int] = mapped_column(primary_key=True)
    candidate: Mapped[int] = mapped_column(primary_key=True)
    turn: Mapped[int] = mapped_column(primary_key=True)
    """The place of the request among the grader's `judge_requests` for this answer."""
    text: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float | None]
