"""What a new comparison can be made of: files and jobs, found by parts of their names."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.console.words import have_words, words_of
from app.core.pagination import fetch_page
from app.files.models import File
from app.fine_tuning.models import FineTuningJob
from app.models.adapters import service as adapters_service
from app.models.adapters.models import IS_CHECKPOINT, Adapter

_PAGE = 25
_NO_QUESTIONS = ("fine-tune-results", "batch_output")
"""The purposes of files that the service writes itself."""


def find_files(
    session: Session, project_id: str, text: str, after: str | None
) -> tuple[Sequence[File], bool]:
    """Return a page of the files whose names or ids have all words of a text, newest first.

    Raises:
        InvalidRequestError: `after` is no file of the project.
    """
    query = select(File).where(
        File.project_id == project_id,
        File.deleted_at.is_(None),
        File.purpose.not_in(_NO_QUESTIONS),
        *have_words(words_of(text), File.filename, File.id),
    )
    return fetch_page(session, query, (File.created_at, File.id), identity=File.id, after=after, limit=_PAGE)


def find_jobs(
    session: Session, project_id: str, text: str, after: str | None
) -> tuple[Sequence[FineTuningJob], bool]:
    """Return a page of the jobs whose models, suffixes or ids have all words of a text, newest first.

    Raises:
        InvalidRequestError: `after` is no job of the project.
    """
    query = select(FineTuningJob).where(
        FineTuningJob.project_id == project_id,
        *have_words(words_of(text), FineTuningJob.fine_tuned_model, FineTuningJob.suffix, FineTuningJob.id),
    )
    return fetch_page(
        session,
        query,
        (FineTuningJob.created_at, FineTuningJob.id),
        identity=FineTuningJob.id,
        after=after,
        limit=_PAGE,
    )


def newest_model(session: Session, project_id: str) -> str:
    """Return the project's newest model that is no checkpoint; empty if it has none."""
    query = select(Adapter.name).where(
        Adapter.project_id == project_id,
        Adapter.deleted_at.is_(None),
        Adapter.quarantine_reason.is_(None),
        ~IS_CHECKPOINT,
    )
    return session.scalar(query.order_by(Adapter.created_at.desc(), Adapter.name.desc()).limit(1)) or ""


def base_of(session: Session, project_id: str, model: str) -> str:
    """Return the base model of a fine-tuned one; empty for any other name."""
    adapter = adapters_service.find_adapter(session, project_id, model)
    return adapter.base_model if adapter else ""
