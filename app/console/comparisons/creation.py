"""New comparisons: the form, what it costs, and what is refused."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy.orm import Session

from app.auth.roles import Action
from app.comparisons import service
from app.comparisons.graders.registry import GRADERS, parse_grader
from app.comparisons.schemas import CreateComparison
from app.comparisons.validation import validate_in_child
from app.console.comparisons import choices
from app.console.comparisons.form import CANDIDATE_FIELDS, MOST_CANDIDATES, NUMBERS, Form, read_form
from app.console.comparisons.grader_settings import DOCUMENT, describe, settings_of
from app.console.page import Page, PageDep
from app.core.database import Database
from app.core.errors import InvalidRequestError, ToqueError
from app.core.idempotency import IdempotentRequest
from app.dependencies import DatabaseDep, LongRoute, ReadSession
from app.models.catalogue import Catalogue

_PATH = "/console/comparisons"

router = APIRouter(include_in_schema=False)


async def _form(request: Request) -> Form:
    return read_form((await request.form()).multi_items())


FormDep = Annotated[Form, Depends(_form)]
Text = Annotated[str, Query(max_length=255)]


@router.get(f"{_PATH}/new")
def read_new(
    page: PageDep, session: ReadSession, model: Text = "", file: Text = "", job: Text = ""
) -> Response:
    """Show the form, with the model or the job's checkpoints beside the base model as it is."""
    page.check(Action.TRAIN)
    form = Form({"file": file, "grader.type": "exact_match", "exclude_training_overlap": "on"})
    tuned = model or choices.newest_model(session, page.context.project_id)
    form.values["model"] = choices.base_of(session, page.context.project_id, tuned)
    form.candidates = [{"type": "base"}, {"type": "prompt"}]
    if job:
        form.candidates.append({"type": "checkpoints", "job": job})
    else:
        form.candidates.append({"type": "model", "model": tuned})
    return _show(page, session, form)


@router.post(f"{_PATH}/check", dependencies=[LongRoute])
def check_form(page: PageDep, form: FormDep, database: DatabaseDep, http: Request) -> Response:
    """Tell what the comparison would ask for, or what would be refused; nothing is created."""
    request = form.request()
    checked = None
    if request is not None:
        try:
            validate = partial(validate_in_child, http.is_disconnected)
            checked = service.check_comparison(database, page.context, request, validate)
        except ToqueError as error:
            _note(form, error)
    return page.render(
        "comparisons/_check.html.jinja",
        status=200 if checked else 400,
        form=form,
        checked=checked,
        has_judges=checked is not None and parse_grader(checked.plan.grader).has_judges,
    )


@router.post(_PATH, dependencies=[LongRoute])
def create_comparison(page: PageDep, form: FormDep, database: DatabaseDep, http: Request) -> Response:
    """Queue the comparison and show it, or show the form again with what is wrong at its fields."""
    request = form.request()
    if request is not None:
        try:
            return page.redirect(f"{_PATH}/{_create(page, database, http, form, request)}")
        except ToqueError as error:
            _note(form, error)
    with database.reader() as session:
        return _show(page, session, form, status=400)


@router.get(f"{_PATH}/new/candidate")
def read_candidate(
    page: PageDep,
    kind: Annotated[str, Query(alias="type", max_length=32)],
    place: Annotated[int, Query(ge=0, le=999_999)],
) -> Response:
    """Show the fields of another candidate.

    Raises:
        InvalidRequestError: there is no such type.
    """
    if kind not in CANDIDATE_FIELDS:
        raise InvalidRequestError(f"No type of candidate '{kind}'.", code="invalid_value", param="type")
    return page.render(
        "comparisons/_candidate.html.jinja",
        form=Form(),
        candidate={"type": kind},
        place=place,
        endpoints=page.context.settings.external_endpoints,
    )


@router.get(f"{_PATH}/new/grader")
def read_grader(page: PageDep, kind: Annotated[str, Query(alias="grader.type", max_length=64)]) -> Response:
    """Show the settings of a grader."""
    return page.render("comparisons/_grader.html.jinja", form=Form(), **_grader(kind))


@router.get(f"{_PATH}/new/files")
def find_files(page: PageDep, session: ReadSession, q: Text = "", after: str | None = None) -> Response:
    """Show a page of the files whose names or ids have a text."""
    found, has_more = choices.find_files(session, page.context.project_id, q, after)
    return _choices(
        page, "files", q, [(each.id, f"{each.filename} · {each.purpose}") for each in found], has_more
    )


@router.get(f"{_PATH}/new/jobs")
def find_jobs(page: PageDep, session: ReadSession, q: Text = "", after: str | None = None) -> Response:
    """Show a page of the jobs whose models or ids have a text."""
    found, has_more = choices.find_jobs(session, page.context.project_id, q, after)
    return _choices(
        page,
        "jobs",
        q,
        [(each.id, each.fine_tuned_model or f"{each.model} · {each.status}") for each in found],
        has_more,
    )


def _choices(page: Page, what: str, q: str, found: list[tuple[str, str]], has_more: bool) -> Response:
    more = urlencode({"q": q, "after": found[-1][0]}) if has_more else None
    return page.render(
        "comparisons/_choices.html.jinja",
        found=found,
        what=what,
        more_href=f"{_PATH}/new/{what}?{more}" if more else None,
    )


def _create(page: Page, database: Database, http: Request, form: Form, request: CreateComparison) -> str:
    creating = IdempotentRequest(
        page.context.project_id,
        form.value("idempotency_key")[:64] or None,
        retry_count=None,
        is_abandoned=lambda: False,
    )
    validate = partial(validate_in_child, http.is_disconnected)
    return service.create_comparison(database, page.context, creating, request, validate).id


def _note(form: Form, error: ToqueError) -> None:
    """Show a refusal at its field. A field that cannot be reached now is no mistake of the form."""
    if error.status >= 500:
        raise error
    form.note(error.body)


def _show(page: Page, session: Session, form: Form, *, status: int = 200) -> Response:
    bases = [entry.name for entry in Catalogue.read(session, page.context.settings).entries]
    return page.render(
        "comparisons/new.html.jinja",
        status=status,
        form=form,
        bases=bases,
        graders=[*GRADERS, DOCUMENT],
        kinds=CANDIDATE_FIELDS,
        defaults=_defaults(),
        most_candidates=MOST_CANDIDATES,
        endpoints=page.context.settings.external_endpoints,
        idempotency_key=uuid.uuid4().hex,
        **_grader(form.grader),
    )


def _grader(kind: str) -> dict[str, Any]:
    return {"kind": kind, "settings": settings_of(kind), "described": describe(kind), "document": DOCUMENT}


def _defaults() -> dict[str, Any]:
    """Return what the fields with numbers are if they are left empty."""
    return {name: CreateComparison.model_fields[name].default for name in NUMBERS}
