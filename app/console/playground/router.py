"""The playground: one question to several models side by side. The page's script asks the public API."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from app.console.page import PageDep
from app.console.playground import choices
from app.core.errors import NotFoundError
from app.dependencies import ReadSession
from app.models.aliases import service as aliases_service

MOST_MODELS = 4
_MOST_CHANGES = 50
"""How far back an alias's history is looked through: its present version is nearly always the one."""

ModelName = Annotated[str, Query(min_length=1, max_length=255)]
SearchText = Annotated[str, Query(max_length=255)]

router = APIRouter(include_in_schema=False)


@router.get("/console/playground")
def read_playground(
    page: PageDep, session: ReadSession, model: Annotated[list[str] | None, Query(max_length=16)] = None
) -> Response:
    """Show the question, and a column for each model."""
    named = [name[:255] for name in dict.fromkeys(model or ()) if name]
    models = named[:MOST_MODELS] or choices.suggest(session, page.context)
    return page.render("playground/page.html.jinja", models=models)


@router.get("/console/playground/column")
def read_column(page: PageDep, model: ModelName) -> Response:
    """Show the column of a model that has been picked."""
    return page.render("playground/_column.html.jinja", model=model)


@router.get("/console/playground/models")
def find_models(
    page: PageDep, session: ReadSession, q: SearchText = "", after: str | None = None
) -> Response:
    """Show a page of the models and aliases whose names have the words of a text."""
    found = choices.find_choices(session, page.context, q, after)
    more = urlencode({"q": q, "after": found.after or ""})
    return page.render(
        "playground/_choices.html.jinja",
        found=found,
        q=q,
        is_more=after is not None,
        more_href=f"/console/playground/models?{more}",
    )


@router.get("/console/playground/version")
def read_version(page: PageDep, session: ReadSession, alias: ModelName, model: ModelName) -> Response:
    """Tell which version of an alias led to the model that has just answered; null if that cannot be told.

    Raises:
        NotFoundError: there is no such alias, or the caller may not ask it.
    """
    if not page.context.may_ask(alias):
        raise NotFoundError(f"No alias '{alias}'.", code="alias_not_found", param="alias")
    changes, _ = aliases_service.list_changes(
        session, page.context.project_id, alias, after=None, limit=_MOST_CHANGES
    )
    led = (
        change.version
        for change, _ in changes
        if any(share["model"] == model for share in change.split_after)
    )
    return JSONResponse({"version": next(led, None)}, headers={"cache-control": "no-store"})
