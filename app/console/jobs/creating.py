"""The form that creates a job, with the dry run beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

from anyio import from_thread, to_thread
from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from app.auth.roles import Action
from app.console.jobs.fields import fields_of, label_of
from app.console.jobs.request_form import field_of, method_of, read_form
from app.console.page import Page, PageDep
from app.core.errors import ToqueError
from app.core.idempotency import IdempotentRequest
from app.dependencies import DatabaseDep, LongRoutesDep, ReadSession
from app.files import service as files_service
from app.files.dependencies import CheckerDep
from app.files.models import File
from app.fine_tuning import creation
from app.fine_tuning.methods import METHODS
from app.fine_tuning.preflight import service as preflight
from app.models.adapters import service as adapters_service
from app.models.catalogue import Catalogue, prepared_names

router = APIRouter(include_in_schema=False)

_CHOICES = 100
"""The most files, and the most models to continue from, that are offered: the newest."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What can be chosen in the form."""

    files: Sequence[File]
    bases: Sequence[tuple[str, bool]]
    """Base models, and whether their weights are here: first those that are."""
    models: Sequence[str]
    """Fine-tuned models to continue from."""


@router.get("/console/jobs/new")
def show_form(page: PageDep, request: Request, session: ReadSession) -> Response:
    """Show the form; what the address names is filled in."""
    page.check(Action.TRAIN)
    entered = {name: value[:4096] for name, value in request.query_params.items()}
    method = method_of(entered)
    return page.render(
        "jobs/new.html.jinja",
        choices=_choices(session, page, entered),
        methods=METHODS,
        method=method,
        fields=fields_of(method),
        entered=entered,
        idempotency_key=str(uuid4()),
    )


@router.post("/console/jobs/dry-run")
async def dry_run(
    page: PageDep, request: Request, database: DatabaseDep, checker: CheckerDep, long_routes: LongRoutesDep
) -> Response:
    """Say what the job would do, or which field is wrong."""
    entered = await _entered(request)
    try:
        asked = read_form(entered)
        await checker.settle(asked.file_ids, page.context.settings.check_patience_seconds)
        found = await to_thread.run_sync(
            preflight.check_job, database, page.context, asked, limiter=long_routes
        )
    except ToqueError as error:
        return _refused(page, entered, error)
    return page.render(
        "jobs/_dry_run.html.jinja",
        found=found,
        error=None,
        error_field=None,
        fields=_names(entered),
        label_of=label_of,
    )


@router.post("/console/jobs")
async def create_job(
    page: PageDep, request: Request, database: DatabaseDep, checker: CheckerDep, long_routes: LongRoutesDep
) -> Response:
    """Create the job, and go to its page."""
    entered = await _entered(request)
    key = entered.get("idempotency_key", "")[:255]
    try:
        asked = read_form(entered)
        await checker.settle(asked.file_ids, page.context.settings.check_patience_seconds)
        creating = IdempotentRequest(
            page.context.project_id,
            key or None,
            retry_count=None,
            is_abandoned=lambda: from_thread.run(request.is_disconnected),
        )
        create = partial(creation.create_job, database, page.context, creating, asked)
        job = await to_thread.run_sync(create, limiter=long_routes)
    except ToqueError as error:
        return _refused(page, entered, error)
    return page.redirect(f"/console/jobs/{job.id}")


async def _entered(request: Request) -> dict[str, str]:
    form = await request.form()
    return {name: value for name, value in form.items() if isinstance(value, str)}


def _refused(page: Page, entered: Mapping[str, str], error: ToqueError) -> Response:
    fields, field = _names(entered), field_of(error)
    message = error.body.message
    if field is not None:  # of its path, people have seen the field only
        message = message.replace(f"'{error.body.param}'", f"'{label_of(field)}'")
    return page.render(
        "jobs/_dry_run.html.jinja",
        found=None,
        error=message,
        error_field=field if field in fields else None,
        fields=fields,
        label_of=label_of,
    )


def _names(entered: Mapping[str, str]) -> list[str]:
    """Return the names of all fields of the form, beside which an error can be shown."""
    own = ("training_file", "validation_file", "share", "model", "method", "suffix", "seed")
    return [*own, *(field.name for field in fields_of(method_of(entered)) if field.key in entered)]


def _choices(session: Session, page: Page, entered: Mapping[str, str]) -> Choices:
    context = page.context
    files, _ = files_service.list_files(
        session, context.project_id, purpose="fine-tune", after=None, limit=_CHOICES, order="desc"
    )
    prepared = set(prepared_names(session, context.settings))
    names = [entry.name for entry in Catalogue.read(session, context.settings).entries]
    adapters = adapters_service.list_adapters(session, context.project_id, limit=_CHOICES)
    models = [each.name for each in adapters if each.quarantine_reason is None]
    if (model := entered.get("model")) and model not in {*names, *models}:
        models.insert(0, model)
    return Choices(
        files=files,
        bases=sorted(((name, name in prepared) for name in names), key=lambda each: not each[1]),
        models=models,
    )
