"""`/console/datasets`: the project's files, what is wrong with them, and what they teach."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool

from app.auth.roles import Action
from app.console import demo_data
from app.console.datasets import examples, topics
from app.console.datasets.lengths import length_bars
from app.console.datasets.unfinished import unfinished_uploads
from app.console.datasets.uses import uses_of
from app.console.page import PageDep
from app.core.database import Database
from app.datasets.report import is_fatal
from app.dependencies import DatabaseDep, ReadSession, WriteSession
from app.files import checks, service
from app.files.dependencies import CheckerDep
from app.files.models import File
from app.models.catalogue import prepared_names

router = APIRouter(prefix="/console/datasets", include_in_schema=False)
router.include_router(examples.router)
topics.register()

Purpose = Literal["fine-tune", "evals", "all"]
_FILES = 50
LARGE_BYTES = 64 * 10**6
"""Smaller files go up in one request."""
PART_BYTES = 16 * 2**20
"""Of larger ones, what is sent again if a connection breaks."""


@router.get("")
def list_files(
    page: PageDep, session: ReadSession, purpose: Purpose = "fine-tune", after: str | None = None
) -> Response:
    """Show the project's files, and take new ones."""
    files, has_more = service.list_files(
        session,
        page.context.project_id,
        purpose=None if purpose == "all" else purpose,
        after=after,
        limit=_FILES,
        order="desc",
    )
    return page.render(
        "datasets/page.html.jinja",
        files=files,
        has_more=has_more,
        purpose=purpose,
        after=after,
        unfinished=unfinished_uploads(session, page.context.project_id),
        settings=page.context.settings,
        large_bytes=LARGE_BYTES,
        part_bytes=PART_BYTES,
    )


@router.post("/demo")
def use_demo_data(page: PageDep, database: DatabaseDep, checker: CheckerDep) -> Response:
    """Add the demo's data to the project."""
    training, *_ = demo_data.add(database, page.context)
    checker.wake()
    return page.redirect(f"/console/datasets/{training.id}")


@router.get("/{file_id}")
def read_file(file_id: str, page: PageDep, session: ReadSession) -> Response:
    """Show a file's report: complete, or as far as its check has come."""
    file = service.get_file(session, page.context.project_id, file_id)
    report = checks.report_of(session, file.id)
    return page.render(
        "datasets/report.html.jinja",
        file=file,
        report=report,
        progress=checks.progress_of(session, file.id),
        bars=length_bars(report.token_lengths) if report and report.token_lengths else [],
        bases=prepared_names(session, page.context.settings),
        is_fatal=is_fatal,
    )


@router.get("/{file_id}/lengths")
async def read_lengths(
    file_id: str,
    page: PageDep,
    database: DatabaseDep,
    checker: CheckerDep,
    base_model: Annotated[str, Query()],
) -> Response:
    """Show how long the examples are for another base model."""
    file, report = await service.validate_for(database, page.context, checker, file_id, base_model)
    return page.render(
        "datasets/_lengths.html.jinja",
        file=file,
        report=report,
        bars=length_bars(report.token_lengths) if report and report.token_lengths else [],
        bases=await run_in_threadpool(_bases, page, database),
    )


@router.get("/{file_id}/delete")
def ask_before_deleting(file_id: str, page: PageDep, session: ReadSession) -> Response:
    """Show what uses a file, and ask whether to delete it."""
    page.check(Action.TRAIN)
    file = service.get_file(session, page.context.project_id, file_id)
    return page.render(
        "datasets/delete.html.jinja", file=file, uses=uses_of(session, page.context.project_id, file.id)
    )


@router.post("/{file_id}/delete")
def delete_file(file_id: str, page: PageDep, session: WriteSession) -> Response:
    """Delete a file."""
    file: File = service.delete_file(session, page.context.project_id, file_id)
    return page.redirect(f"/console/datasets?purpose={'evals' if file.purpose == 'evals' else 'fine-tune'}")


def _bases(page: PageDep, database: Database) -> list[str]:
    with database.reader() as session:
        return prepared_names(session, page.context.settings)
