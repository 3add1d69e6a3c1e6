"""`/console/aliases`: where names point, what they are asked, and how they move."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Form, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.auth.roles import Action
from app.comparisons import service as comparisons_service
from app.console.aliases import promotion, traffic
from app.console.aliases.move_form import MoveForm, Row
from app.console.aliases.rules import rule_views
from app.console.events import topic
from app.console.model_pages.lineage import alias_path
from app.console.model_pages.listing import list_models
from app.console.page import Page, PageDep
from app.context import Context
from app.core.errors import FailedDependencyError, NotFoundError, ToqueError
from app.dependencies import DatabaseDep, IdempotentRequestDep, ReadSession
from app.models.adapters import served_models
from app.models.aliases import service
from app.models.aliases.models import Alias
from app.models.aliases.schemas import RollBackAlias
from app.models.catalogue import Catalogue

router = APIRouter(include_in_schema=False)
router.include_router(promotion.router)

_PAGE = 20
_CHANGES = 20
_SUGGESTED = 50
_NEW = "/console/aliases/~new"
"""No alias has this name."""

Models = Annotated[list[str], Form()]
Weights = Annotated[list[str], Form()]
Version = Annotated[int | None, Form(ge=1, le=2**31 - 1)]
Text = Annotated[str, Form(max_length=2000)]


@router.get("/console/aliases")
def read_aliases(page: PageDep, session: ReadSession, after: str | None = None) -> Response:
    """List the aliases, each with the models that it points to and what they were asked."""
    project_id = page.context.project_id
    aliases, has_more = service.list_aliases(session, project_id, after=after, limit=_PAGE)
    return page.render(
        "aliases/list.html.jinja",
        rows=traffic.measure(session, project_id, aliases),
        is_first=after is None,
        next_after=aliases[-1].name if has_more else None,
        watch=["aliases"],
    )


@router.get(_NEW)
def read_new(page: PageDep, session: ReadSession, model: str = "") -> Response:
    """Show the form for a new alias."""
    page.check(Action.MANAGE)
    return _render_form(page, session, MoveForm("", [Row(model[:255])], None))


@router.post(_NEW)
def create_alias(
    page: PageDep,
    database: DatabaseDep,
    creating: IdempotentRequestDep,
    name: Text = "",
    model: Models = [],  # noqa: B006 - FastAPI copies it
    weight: Weights = [],  # noqa: B006
    reason: Text = "",
) -> Response:
    """Create an alias."""
    form = MoveForm.sent(name, model, weight, None, reason)
    return _move(page, database, creating, form)


@router.get("/console/aliases/{name}")
def read_alias(page: PageDep, session: ReadSession, name: str, after: str | None = None) -> Response:
    """Show where an alias points, what it was asked, and its history."""
    values = _shown(session, page, name, after)
    return page.render("aliases/alias.html.jinja", **values, watch=[f"alias:{name}"])


@router.get("/console/aliases/{name}/now")
def read_alias_now(page: PageDep, session: ReadSession, name: str) -> Response:
    """Show the part of an alias's page that changes when it moves."""
    return page.render("aliases/_now.html.jinja", **_shown(session, page, name, None))


@router.get("/console/aliases/{name}/move")
def read_move(page: PageDep, session: ReadSession, name: str) -> Response:
    """Show the form that points an alias elsewhere."""
    page.check(Action.MANAGE)
    return _render_form(page, session, MoveForm.of(service.get_alias(session, page.context.project_id, name)))


@router.post("/console/aliases/{name}/move")
def move_alias(
    page: PageDep,
    database: DatabaseDep,
    creating: IdempotentRequestDep,
    name: str,
    model: Models = [],  # noqa: B006
    weight: Weights = [],  # noqa: B006
    version: Version = None,
    reason: Text = "",
) -> Response:
    """Point an alias to another model, or to several."""
    form = MoveForm.sent(name, model, weight, version, reason)
    return _move(page, database, creating, form)


@router.get("/console/aliases/{name}/rollback")
def confirm_rollback(page: PageDep, session: ReadSession, name: str) -> Response:
    """Show what a rollback would change."""
    page.check(Action.MANAGE)
    return _render_rollback(page, session, name)


@router.post("/console/aliases/{name}/rollback")
def roll_back(
    page: PageDep,
    database: DatabaseDep,
    creating: IdempotentRequestDep,
    name: str,
    version: Version = None,
    reason: Text = "",
) -> Response:
    """Point an alias to where it pointed before."""
    page.check(Action.MANAGE)
    try:
        with database.writer() as session:
            request = RollBackAlias(version=version, reason=reason.replace("\0", "").strip()[:512] or None)
            service.roll_back(session, page.context, creating, name, request)
    except ToqueError as error:
        with database.reader() as session:
            return _render_rollback(page, session, name, error)
    return page.redirect(alias_path(name))


@router.get("/console/aliases/{name}/delete")
def confirm_deletion(page: PageDep, session: ReadSession, name: str) -> Response:
    """Ask whether to delete an alias, and say what it is asked."""
    page.check(Action.MANAGE)
    return _render_deletion(page, session, name)


@router.post("/console/aliases/{name}/delete")
def delete_alias(page: PageDep, database: DatabaseDep, name: str, version: Version = None) -> Response:
    """Delete an alias; its history stays."""
    page.check(Action.MANAGE)
    try:
        with database.writer() as session:
            service.delete_alias(session, page.context, name, version)
    except ToqueError as error:
        with database.reader() as session:
            return _render_deletion(page, session, name, error)
    return page.redirect(alias_path(name))


def _move(page: Page, database: DatabaseDep, creating: IdempotentRequestDep, form: MoveForm) -> Response:
    page.check(Action.MANAGE)
    try:
        with database.writer() as session:
            find = comparisons_service.get_comparison
            service.put_alias(session, page.context, creating, form.name, form.request(), find)
    except ToqueError as error:
        with database.reader() as session:
            return _render_form(page, session, form, error)
    return page.redirect(alias_path(form.name))


def _shown(session: Session, page: Page, name: str, after: str | None) -> dict[str, Any]:
    project_id = page.context.project_id
    changes, has_more = service.list_changes(session, project_id, name, after=after, limit=_CHANGES)
    alias = service.find_alias(session, page.context, name)
    return {
        "name": name,
        "alias": alias,
        "traffic": traffic.measure(session, project_id, [alias])[0] if alias else None,
        "day": traffic.last_day(session, project_id, name),
        "changes": [(change, key, rule_views(change.rules)) for change, key in changes],
        "is_newest": after is None,
        "next_after": changes[-1][0].id if has_more else None,
    }


def _render_form(page: Page, session: Session, form: MoveForm, error: ToqueError | None = None) -> Response:
    models, _ = list_models(session, page.context.project_id, "models", "", after=None, limit=_SUGGESTED)
    bases = [entry.name for entry in Catalogue.read(session, page.context.settings).entries]
    alias = None if form.version is None else _find(session, page, form.name)
    if alias is not None and error is not None:
        form = replace(form, version=alias.version)  # who sees where it is now may move it from there
    return page.render(
        "aliases/move.html.jinja",
        status=200 if error is None else error.status,
        form=form,
        is_new=form.version is None,
        alias=alias,
        error=error.body if error else None,
        models=[view.adapter.name for view in models if view.adapter.quarantine_reason is None] + bases,
    )


def _render_rollback(page: Page, session: Session, name: str, error: ToqueError | None = None) -> Response:
    alias = service.get_alias(session, page.context.project_id, name)
    before = service.change_before(session, alias)
    return page.render(
        "aliases/rollback.html.jinja",
        status=200 if error is None else error.status,
        alias=alias,
        before=before,
        gone=_unservable(session, page, [share["model"] for share in before.split_after]) if before else {},
        error=error.body if error else None,
    )


def _render_deletion(page: Page, session: Session, name: str, error: ToqueError | None = None) -> Response:
    alias = service.get_alias(session, page.context.project_id, name)
    return page.render(
        "aliases/delete.html.jinja",
        status=200 if error is None else error.status,
        alias=alias,
        traffic=traffic.measure(session, page.context.project_id, [alias])[0],
        error=error.body if error else None,
    )


def _find(session: Session, page: Page, name: str) -> Alias | None:
    try:
        return service.get_alias(session, page.context.project_id, name)
    except NotFoundError:
        return None


def _unservable(session: Session, page: Page, models: list[str]) -> dict[str, str]:
    """Return why models cannot be returned to, by their names."""
    found: dict[str, str] = {}
    for model in models:
        try:
            served_models.resolve_model(session, page.context.settings, page.context.project_id, model)
        except (NotFoundError, FailedDependencyError) as error:
            found[model] = error.body.message
    return found


def _alias_fingerprint(session: Session, context: Context, name: str) -> str:
    query = select(Alias.version).where(Alias.project_id == context.project_id, Alias.name == name)
    return str(session.scalar(query))


def _aliases_fingerprint(session: Session, context: Context, _argument: str) -> str:
    query = select(func.count(), func.sum(Alias.version)).where(Alias.project_id == context.project_id)
    return str(session.execute(query).one())


topic("alias", _alias_fingerprint)
topic("aliases", _aliases_fingerprint)
