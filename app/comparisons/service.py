"""Rules on comparisons."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.comparisons.input_files import InputFiles, ValidatedFiles
from app.comparisons.models import FINAL_STATUSES, Answer, Comparison, Question
from app.comparisons.resolver import resolve_request
from app.comparisons.schemas import CreateComparison
from app.core.errors import ConflictError, InvalidRequestError, NotFoundError
from app.core.idempotency import CreationRequest
from app.core.pagination import fetch_page
from app.core.settings import Settings
from app.storage.base import Storage

MAX_ANSWERS = 50_000
"""Of one comparison, all candidates' together."""


def create_comparison(
    reading: Session,
    session: Session,
    storage: Storage,
    settings: Settings,
    creating: CreationRequest,
    request: CreateComparison,
    validate: Callable[[InputFiles], ValidatedFiles],
) -> Comparison:
    """Checks everything that can be checked without asking a model, and queues the comparison.

    `validate` is `input_files.validate_files`, run wherever the caller chooses. It may take long, so
    `session` is not used before it: an open transaction may hold up others.

    Raises:
        InvalidRequestError: a field or a line of a file is wrong; nothing is kept.
        NotFoundError: a model, a job or a file is not there.
        FailedDependencyError: a model is quarantined.
    """
    resolved = resolve_request(reading, storage, settings, creating.project_id, request)
    reading.close()
    validated = validate(resolved.files)
    plan = resolved.plan(validated)
    if plan.total > MAX_ANSWERS:
        raise InvalidRequestError(
            f"Candidates times questions are {plan.total:,} answers; at most {MAX_ANSWERS:,} are asked for.",
            code="too_many_answers",
            param="candidates",
        )
    content = request.model_dump(mode="json", exclude_unset=True)
    if (known := creating.find(session, "comparison", content)) is not None:
        return get_comparison(session, creating.project_id, known)
    comparison = Comparison(
        project_id=creating.project_id,
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
    creating.remember(session, "comparison", content, comparison.id)
    return comparison


def get_comparison(session: Session, project_id: str, comparison_id: str) -> Comparison:
    """The project's comparison.

    Raises:
        NotFoundError: not there, or another project's.
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
    """A page of the project's comparisons, newest first, and whether more follow."""
    return fetch_page(
        session,
        select(Comparison).where(Comparison.project_id == project_id),
        (Comparison.created_at, Comparison.id),
        identity=Comparison.id,
        after=after,
        limit=limit,
    )


def cancel_comparison(session: Session, project_id: str, comparison_id: str) -> Comparison:
    """Ends a comparison that has not ended; what it was answered stays.

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
            param="status",
        )
    comparison.status = "cancelled"
    comparison.finished_at = time.time()
    comparison.lease_until = comparison.api_keys = None
    return comparison


def list_items(
    session: Session, comparison: Comparison, *, after: str | None, limit: int
) -> tuple[Sequence[tuple[Question, Sequence[Answer]]], bool]:
    """A page of the questions in their order, each with the answers to it so far, and whether more follow."""
    questions, has_more = fetch_page(
        session,
        select(Question).where(Question.comparison_id == comparison.id),
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
