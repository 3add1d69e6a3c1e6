"""`/console/models`: base models, fine-tuned models and their checkpoints, and where each comes from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.auth.roles import Action
from app.console.model_pages.bases import list_bases
from app.console.model_pages.lineage import find_lineage
from app.console.model_pages.listing import Kind, aliases_of, list_models
from app.console.model_pages.scores import find_scores
from app.console.page import Page, PageDep
from app.context import Context
from app.core.errors import ToqueError
from app.dependencies import DatabaseDep, ReadSession
from app.fine_tuning.models import FINAL_STATUSES, FineTuningJob
from app.models.adapters import files
from app.models.adapters.models import Adapter
from app.models.adapters.service import get_adapter, require_adapter
from app.models.aliases import service as aliases_service
from app.models.catalogue import Catalogue
from app.usage import service as usage_service
from app.usage.schemas import UsageQuery

router = APIRouter(include_in_schema=False)

_PAGE = 25
_WEEK_SECONDS = 7 * 86400


@router.get("/console/models")
def read_models(
    page: PageDep,
    session: ReadSession,
    kind: Kind = "models",
    search: Annotated[str, Query(max_length=255)] = "",
    after: str | None = None,
) -> Response:
    """List base models, then a page of what was trained or imported."""
    search = search.strip()
    models, has_more = list_models(session, page.context.project_id, kind, search, after=after, limit=_PAGE)
    is_first = after is None and not search
    last = {"after": models[-1].adapter.name} if has_more else {}
    return page.render(
        "models/list.html.jinja",
        bases=list_bases(session, page.context.settings) if is_first else (),
        models=models,
        kind=kind,
        search=search,
        is_first=is_first,
        next_query=urlencode({"kind": kind, "search": search} | last) if has_more else None,
    )


@router.get("/console/models/{name}")
def read_model(page: PageDep, session: ReadSession, name: str) -> Response:
    """Show a base model, or where an adapter comes from and how good it is."""
    adapter = _find(session, page.context, name)
    if adapter is None:
        return _render_base(page, session, name)
    return page.render("models/model.html.jinja", **_shown(session, page, adapter))


@router.get("/console/models/{name}/weights")
def read_weights(page: PageDep, session: ReadSession, name: str) -> Response:
    """Show what an adapter's files say; as they may be in a bucket, the page asks for this later."""
    try:
        weights, problem = files.find_parent(session, page.context, name), None
    except ToqueError as error:
        weights, problem = None, error.body.message
    return page.render("models/_weights.html.jinja", weights=weights, problem=problem)


@router.post("/console/models/{name}/check")
def check_model(page: PageDep, database: DatabaseDep, name: str) -> Response:
    """Read all of an adapter again, and show whether it can be served."""
    with database.reader() as session:
        adapter = require_adapter(session, page.context.project_id, name)
    try:
        adapter, problem = files.check_again(database, page.context, name), None
    except ToqueError as error:
        problem = error.body.message
    return page.render("models/_checked.html.jinja", adapter=adapter, is_checked=True, problem=problem)


@router.get("/console/models/{name}/delete")
def confirm_deletion(page: PageDep, session: ReadSession, name: str) -> Response:
    """Ask whether to delete a model, and say who uses it."""
    page.check(Action.MANAGE)
    return _render_deletion(page, session, name)


@router.post("/console/models/{name}/delete")
def delete_model(page: PageDep, database: DatabaseDep, name: str) -> Response:
    """Delete a model that no alias points to."""
    page.check(Action.MANAGE)
    try:
        with database.writer() as session:
            _find(session, page.context, name)
            aliases_service.delete_model(session, page.context, name)
    except ToqueError as error:
        with database.reader() as session:
            return _render_deletion(page, session, name, error)
    return page.redirect("/console/models")


def _find(session: Session, context: Context, name: str) -> Adapter | None:
    """Return the project's adapter; None for a base model.

    Raises:
        NotFoundError: there is neither.
    """
    return get_adapter(session, context.settings, context.project_id, name)


def _shown(session: Session, page: Page, adapter: Adapter) -> dict[str, Any]:
    job = None if adapter.job_id is None else session.get(FineTuningJob, adapter.job_id)
    return {
        "adapter": adapter,
        "job": job,
        "stages": find_lineage(session, adapter),
        "scores": find_scores(session, adapter),
        "requests": _requests(session, page.context.project_id, adapter.name),
        "base": next(iter(list_bases(session, page.context.settings, [adapter.base_model])), None),
    }


def _render_base(page: Page, session: Session, name: str) -> Response:
    entry = Catalogue.read(session, page.context.settings).get(name)
    [base] = list_bases(session, page.context.settings, [entry.name])
    requests = _requests(session, page.context.project_id, entry.name)
    return page.render("models/base.html.jinja", base=base, requests=requests)


def _render_deletion(page: Page, session: Session, name: str, error: ToqueError | None = None) -> Response:
    adapter = _find(session, page.context, name)
    if adapter is None:
        return _render_base(page, session, name)
    project_id = page.context.project_id
    return page.render(
        "models/delete.html.jinja",
        status=200 if error is None else error.status,
        adapter=adapter,
        problem=None if error is None else error.body.message,
        aliases=aliases_of(session, project_id, [name]).get(name, ()),
        jobs=_jobs_that_need(session, project_id, name),
        requests=_requests(session, project_id, name),
    )


def _jobs_that_need(session: Session, project_id: str, name: str) -> Sequence[FineTuningJob]:
    """Return jobs that have not ended, and continue from the model."""
    query = select(FineTuningJob).where(
        FineTuningJob.project_id == project_id,
        FineTuningJob.status.not_in(FINAL_STATUSES),
        FineTuningJob.parent == name,
    )
    return session.scalars(query.limit(20)).all()


def _requests(session: Session, project_id: str, model: str) -> int:
    """Return how often the project asked the model in the last week."""
    query = UsageQuery(start_time=int(time.time()) - _WEEK_SECONDS, models=[model], limit=8)
    buckets, _ = usage_service.list_buckets(session, query, project_ids=[project_id], group_by=set())
    return sum(sums.requests for bucket in buckets for _, sums in bucket.results)
