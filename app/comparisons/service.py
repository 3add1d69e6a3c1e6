"""Comparisons: creating, listing, reading and cancelling them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from app.comparisons import queue
from app.comparisons.input_files import InputFiles, ValidatedFiles
from app.comparisons.models import FINAL_STATUSES, Answer, Comparison, Question
from app.comparisons.plan import Plan
from app.comparisons.resolver import ResolvedRequest, resolve_request
from app.comparisons.schemas import CreateComparison
from app.context import Context
from app.core.database import Database
from app.core.errors import ConflictError, InvalidRequestError, NotFoundError
from app.core.idempotency import IdempotentRequest
from app.core.pagination import fetch_page

MAX_ANSWERS = 50_000
"""The most answers that one comparison may ask for, of all candidates together."""


class CheckedRequest(NamedTuple):
    """A request to compare in which nothing is wrong."""

    resolved: ResolvedRequest
    validated: ValidatedFiles
    plan: Plan


def create_comparison(
    database: Database,
    context: Context,
    creating: IdempotentRequest,
    request: CreateComparison,
    validate: Callable[[InputFiles], ValidatedFiles],
) -> Comparison:
    """Check everything that can be checked without asking a model, and queue the comparison.

    `validate` is `input_files.validate_files`, run wherever the caller chooses. No transaction is open
    while it runs, because it may take long.

    Raises:
        InvalidRequestError: a field or a line of a file is wrong; nothing is kept.
        NotFoundError: a model, a job or a file does not exist.
        FailedDependencyError: a model is quarantined.
    """
    checked = check_comparison(database, context, request, validate)
    with database.writer() as session:
        return creating.once(
            session,
            "comparison",
            request.model_dump(mode="json", exclude_unset=True),
            find=partial(get_comparison, session, context.project_id),
            create=partial(_create, session, context, checked),
        )


def check_comparison(
    database: Database,
    context: Context,
    request: CreateComparison,
    validate: Callable[[InputFiles], ValidatedFiles],
) -> CheckedRequest:
    """Check all that `create_comparison` does, and create nothing.

    Raises:
        InvalidRequestError: a field or a line of a file is wrong.
        NotFoundError: a model, a job or a file does not exist.
        FailedDependencyError: a model is quarantined.
    """
    with database.reader() as session:
        resolved = resolve_request(session, context, request)
    with resolved.input_files(context.storage) as files:
        validated = validate(files)
    plan = resolved.plan(validated)
    if plan.total > MAX_ANSWERS:
        raise InvalidRequestError(
            f"Candidates times questions are {plan.total:,} answers; at most {MAX_ANSWERS:,} are asked for.",
            code="too_many_answers",
            param="candidates",
        )
    return CheckedRequest(resolved, validated, plan)


def _create(session: Session, context: Context, checked: CheckedRequest) -> Comparison:
    resolved, validated, plan = checked
    request = resolved.request
    comparison = Comparison(
        project_id=context.project_id,
        name=request.name,
        status="queued",
        model=resolved.base.name,
        file_id=request.file,
        regression_file_id=request.regression_file,
        plan=plan.model_dump(mode="json"),
        excluded=validated.excluded,
        comparison_metadata=request.metadata,
        total=plan.total,
        api_keys=resolved.api_keys or None,
    )
    session.add(comparison)
    session.flush()
    session.add_all(
        Question(comparison_id=comparison.id, number=number, content=msgspec.to_builtins(question))
        for number, question in enumerate([*validated.questions, *validated.general])
    )
    session.flush()
    return comparison


def get_comparison(session: Session, project_id: str, comparison_id: str) -> Comparison:
    """Return the project's comparison.

    Raises:
        NotFoundError: it does not exist, or is another project's.
    """
    comparison = session.scalar(
        select(Comparison).where(Comparison.id == comparison_id, Comparison.project_id == project_id)
    )
    if comparison is None:
        raise NotFoundError(f"No comparison '{comparison_id}'.", code="comparison_not_found")
    return comparison


def list_comparisons(
    session: Session, project_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[Comparison], bool]:
    """Return a page of the project's comparisons, newest first, and whether more follow."""
    return fetch_page(
        session,
        select(Comparison).where(Comparison.project_id == project_id),
        (Comparison.created_at, Comparison.id),
        identity=Comparison.id,
        after=after,
        limit=limit,
    )


def cancel_comparison(session: Session, project_id: str, comparison_id: str) -> Comparison:
    """Cancel a comparison that has not ended; the answers so far stay.

    Raises:
        ConflictError: it has succeeded or failed.
    """
    comparison = get_comparison(session, project_id, comparison_id)
    # Locked, so that the process that is finishing it either has done so or finds it cancelled.
    session.refresh(comparison, with_for_update=True)
    if comparison.status == "cancelled":
        return comparison
    if comparison.status in FINAL_STATUSES:
        raise ConflictError(
            f"The comparison is {comparison.status}; it cannot become cancelled.",
            code=f"comparison_{comparison.status}",
        )
    comparison.status = "cancelled"
    comparison.finished_at = time.time()
    comparison.lease_until = comparison.api_keys = None
    queue.announce_end(session, comparison.id, "cancelled")
    return comparison


def list_items(
    session: Session,
    comparison: Comparison,
    *,
    after: str | None,
    limit: int,
    only: Sequence[ColumnElement[bool]] = (),
) -> tuple[Sequence[tuple[Question, Sequence[Answer]]], bool]:
    """Return a page of the questions in order, each with its answers so far, and whether more follow.

    `only` are conditions of the questions to return, such as those of `differences`.
    """
    questions, has_more = fetch_page(
        session,
        select(Question).where(Question.comparison_id == comparison.id, *only),
        (Question.number,),
        identity=Question.id,
        after=after,
        limit=limit,
        order="asc",
    )
    by_number: dict[int, list[Answer]] = {question.number: [] for question in questions}
    answers = select(Answer).where(Answer.comparison_id == comparison.id, Answer.question.in_(by_number))
    for answer in session.scalars(answers.order_by(Answer.question, Answer.candidate)):
        by_number[answer.question].append(answer)
    return [(question, by_number[question.number]) for question in questions], has_more
